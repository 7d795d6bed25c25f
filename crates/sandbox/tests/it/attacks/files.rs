//! Through what the platform does with a session's files.

use std::path::Path;

use karta_sandbox::Driver;

use super::{apart, said};
use crate::support::{World, acquire};

pub(super) async fn lead_a_put_elsewhere(driver: &dyn Driver, world: &World) {
    let sandbox = acquire(driver, &world.spec(1, "a")).await;
    let text = "cd /home/agent; ln -s / root; ln -s /workspace work; ln -s /etc/passwd passwd; mkfifo pipe; ln -s /state/work state; \
                mkdir deep; ln -s ../.. deep/up; echo mine > file; ln file hard; ln -s /opt/harness harness";
    said(&*sandbox, text).await;
    for path in ["root/tmp/x", "work/x", "state/x", "deep/up/x", "harness/x", "root/etc/passwd"] {
        let put = sandbox.put(Path::new(path), b"planted").await;
        assert!(put.is_err(), "{path}");
    }
    // A last name that is a link or a pipe is replaced, not followed.
    for path in ["passwd", "pipe", "hard"] {
        sandbox.put(Path::new(path), b"planted").await.unwrap();
    }
    let output = said(
        &*sandbox,
        "cd /home/agent; stat -c '%F' passwd pipe hard; cat file; find / -name x -newer file 2>/dev/null; \
                                  grep -r planted /etc /workspace /opt 2>/dev/null; echo done",
    )
    .await
    .0;
    assert_eq!(output, "regular file\nregular file\nregular file\nmine\ndone\n");
}

pub(super) async fn lead_a_find_elsewhere(driver: &dyn Driver, world: &World) {
    let sandbox = acquire(driver, &world.spec(1, "a")).await;
    let text = "cd /home/agent; mkdir d; ln -s /etc/passwd d/a.txt; mkfifo d/b.txt; ln -s /proc/1 d/proc; ln -s /etc etc; \
                ln -s /dev/zero d/zero.txt; mkdir d/c.txt; echo mine > d/e.txt; ln -s /proc/self/environ d/f.txt; \
                perl -e 'open(F, \">\", \"d/g\\nh\\xff.txt\"); truncate(F, 1 << 40)'; echo tried";
    assert!(said(&*sandbox, text).await.0.ends_with("tried\n"));
    let mut found = sandbox.find("d/*.txt", 100).await.unwrap();
    found.sort();
    let contents: Vec<_> = found.iter().map(|(_, content)| content.as_slice()).collect();
    assert!(contents.contains(&&b"mine\n"[..]), "{found:?}");
    // Where no file may be so long, the last one stayed empty.
    let allowed = |content: &[u8]| [&b"mine\n"[..], &[0; 100], b""].contains(&content);
    assert!(contents.iter().all(|content| allowed(content)), "{found:?}");
    assert!(sandbox.find("etc/*", 100).await.unwrap().is_empty());
    assert!(sandbox.find("d/proc/*", 100).await.unwrap().is_empty());
}

pub(super) async fn lead_an_export_elsewhere(driver: &dyn Driver, world: &World) {
    let sandbox = acquire(driver, &world.spec(1, "a")).await;
    let text = "cd /workspace; ln -s /etc/passwd link; ln -s / root; ln -s ../../../../../tmp/planted up; mkfifo pipe; \
                mkdir -p a; ln -s /tmp a/b; echo mine > file; ln file hard; chmod 4777 file; \
                mkdir -m 0 closed; echo tried";
    assert!(said(&*sandbox, text).await.0.ends_with("tried\n"));
    let into = world.folder.path().join("export");
    std::fs::create_dir(&into).unwrap();
    sandbox.export(&into).await.unwrap();
    let mut folders = vec![into.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let meta = entry.metadata().unwrap();
            if meta.is_dir() {
                folders.push(entry.path());
            } else if meta.is_symlink() {
                let target = std::fs::read_link(entry.path()).unwrap();
                let leads_in = target.is_relative() && !target.starts_with("..");
                assert!(leads_in, "{} -> {}", entry.path().display(), target.display());
            } else {
                use std::os::unix::fs::PermissionsExt as _;
                assert!(meta.is_file(), "{}", entry.path().display());
                assert_eq!(meta.permissions().mode() & 0o7000, 0, "{}", entry.path().display());
            }
        }
    }
    assert_eq!(std::fs::read_to_string(into.join("file")).unwrap(), "mine\n");
}

pub(super) async fn reach_under_the_workspace(driver: &dyn Driver, world: &World) {
    let sandbox = acquire(driver, &world.spec(1, "a")).await;
    let marks: String = ["redirect", "opaque", "metacopy", "whiteout", "origin"]
        .iter()
        .map(|mark| {
            super::call(
                mark,
                libc::SYS_setxattr,
                &format!("\"/workspace/agents\", \"user.overlay.{mark}\", \"/../../../etc\", 13, 0"),
            )
        })
        .collect();
    let text = format!(
        "ls /state/work /state/work/up && echo LISTED\necho x > /state/work/up/x && echo WRITTEN\n\
         ls /state && echo LISTED\n{marks}ls /workspace/agents"
    );
    let output = said(&*sandbox, &text).await.0;
    assert!(!apart(driver) || !output.contains("LISTED"), "{output}");
    assert!(!output.contains("WRITTEN"), "{output}");
    // Whatever became of the marks, the folder is what it was.
    assert!(output.ends_with("one.md\n"), "{output}");
    let again = said(&*sandbox, "ls /workspace/agents/ /workspace").await.0;
    assert!(again.contains("one.md") && !again.contains("passwd"), "{again}");
}

pub(super) async fn change_the_release(driver: &dyn Driver, world: &World) {
    let sandbox = acquire(driver, &world.spec(1, "a")).await;
    let text = "echo planted >> /release/CLAUDE.md; rm -rf /release/agents; chmod 777 /release; \
                echo planted >> /workspace/CLAUDE.md; rm -r /workspace/agents; cat /workspace/CLAUDE.md";
    let output = said(&*sandbox, text).await.0;
    assert!(output.ends_with("be brief\nplanted\n"), "{output}");
    assert_eq!(std::fs::read_to_string(world.release().join("CLAUDE.md")).unwrap(), "be brief\n");
    assert!(world.release().join("agents/one.md").exists());
    // Another session on the same release sees nothing of it.
    let other = acquire(driver, &world.spec(2, "a")).await;
    assert_eq!(said(&*other, "cat CLAUDE.md agents/one.md").await.0, "be brief\nfirst\n");
}
