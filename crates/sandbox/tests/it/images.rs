//! Images made for real, from packages.

use karta_sandbox::image::{Images, Recipe};

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
        assert!(images.prune().unwrap().is_empty(), "the current image stays");
    }
    assert_eq!(ids[0], ids[1]);
}
