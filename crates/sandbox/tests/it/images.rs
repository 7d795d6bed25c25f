//! Images made for real, from packages.

use std::fs;
use std::path::Path;

use karta_sandbox::image::{Image, Images, Left, Manifest, Recipe};
use karta_sandbox::limits::Machines;
use karta_sandbox::namespace;

use crate::isolated::machines;
use crate::support::{World, acquire, clock, programs, rng, run, script};

/// Twice from nothing, the same comes out; and once more from what is there.
#[tokio::test]
#[ignore = "needs packages and the programs that make images"]
async fn the_same_inputs_make_the_same_image() {
    let folder = tempfile::tempdir().unwrap();
    let mut ids = Vec::new();
    for name in ["one", "other"] {
        let images = Images::new(folder.path().join(name));
        let image = images.build(&Recipe::default(), &|progress| eprintln!("{progress:?}")).await.unwrap();
        assert!(image.is_current());
        assert!(image.root().join("usr/bin/git").exists());
        assert!(!image.root().join("etc/apt/sources.list.d").exists());
        ids.push(image.id());
        let again = images.build(&Recipe::default(), &|_| {}).await.unwrap();
        assert_eq!(again.id(), image.id());
        assert_eq!(images.list().unwrap().len(), 1);
        let current = images.current().unwrap();
        assert_eq!(current.folder, image.folder);
        assert!(images.prune().unwrap().removed.is_empty(), "the current image stays");
    }
    assert_eq!(ids[0], ids[1]);
}

/// An image with a shell and what it needs from this host, made by another Karta.
fn small(images: &Path, name: &str) -> Image {
    let folder = images.join(name);
    let root = folder.join("root");
    let needed = std::process::Command::new("ldd").arg("/bin/sh").output().unwrap();
    let needed = String::from_utf8(needed.stdout).unwrap();
    let files = needed.split_whitespace().filter(|word| word.starts_with('/')).chain(["/bin/sh"]);
    for file in files {
        let to = root.join(file.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(file, to).unwrap();
    }
    fs::create_dir_all(root.join("etc")).unwrap();
    fs::write(root.join("etc/mark"), name).unwrap();
    let manifest = Manifest {
        format: 1,
        suite: name.to_owned(),
        packages: Vec::new(),
        kernel: String::new(),
        guest: String::new(),
        inputs: String::new(),
        tree: String::new(),
        tree_bytes: 0,
        parts: Vec::new(),
    };
    fs::write(folder.join("manifest.json"), serde_json::to_vec(&manifest).unwrap()).unwrap();
    Image::open(&folder).unwrap()
}

#[tokio::test]
async fn an_image_that_a_sandbox_runs_from_is_not_removed() {
    let world = World::new();
    let folder = world.folder.path().join("images");
    let images = Images::new(folder.clone());
    let used = small(&folder, "used");
    let limits = Machines { images: folder.clone(), ..machines(&world) };
    let driver = namespace::Driver::new(limits, programs(), clock(), rng()).unwrap();
    let sandbox = acquire(&driver, &world.spec(1, "a")).await;
    small(&folder, "other");
    let pruned = images.prune().unwrap();
    let names = |images: Vec<Image>| images.into_iter().map(|image| image.manifest.suite).collect::<Vec<_>>();
    assert_eq!(names(pruned.removed), ["other"]);
    let left: Vec<_> = pruned.left.into_iter().map(|(image, why)| (image.manifest.suite, why)).collect();
    assert_eq!(left, [("used".to_owned(), Left::InUse)]);
    let (said, _) = run(&*sandbox, &script(&*sandbox, "read mark < /etc/mark; echo $mark"), "").await;
    assert_eq!(said, "used\n");
    sandbox.close().await.unwrap();
    let pruned = images.prune().unwrap();
    assert_eq!((names(pruned.removed), pruned.left.len()), (vec!["used".to_owned()], 0));
    assert!(!used.folder.exists());
}
