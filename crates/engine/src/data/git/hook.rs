//! The hook that git runs before anything pushed is visible, and how it asks.
//!
//! The server gives `receive-pack` one end of a socket as descriptor 3; hooks inherit it. The hook writes what git tells it, then prints
//! what the server says until that is a yes or a no. There is no name to open and nobody to wait for: when the server is gone, so is the
//! other end, and the hook refuses. Nothing but the shell is run.
//!
//! A question is lines: `objects PATH` and `alternates PATH` (absent when nothing but deletions is pushed), `ref OLD NEW NAME` for each
//! ref, `end`. An answer is lines: `+TEXT` is for the pusher, `ok` takes the push, anything else refuses it.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _};
use tokio::process::Command;

use super::plan::{ObjectId, Update};

const SCRIPT: &str = r#"#!/bin/sh
# Written by Karta, at every start. Descriptor 3 is the server that runs git.
say() { printf '%s\n' "$1" >&3 || exit 1; }
if [ -n "${GIT_QUARANTINE_PATH-}" ]; then
    say "objects $GIT_OBJECT_DIRECTORY"
    say "alternates $GIT_ALTERNATE_OBJECT_DIRECTORIES"
fi
while IFS= read -r line; do say "ref $line"; done
say end
while IFS= read -r line <&3; do
    case $line in
    +*) printf '%s\n' "${line#+}" ;;
    ok) exit 0 ;;
    *) exit 1 ;;
    esac
done
exit 1
"#;

/// Bytes of one question.
const QUESTION: u64 = 1 << 20;

/// What git asks before it takes a push.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Question {
    /// Where the pushed objects are; nothing when only branches are deleted.
    pub(super) quarantine: Quarantine,
    /// What is to be changed.
    pub(super) updates: Vec<Update>,
}

/// Where the pushed objects are until the push is taken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Quarantine {
    objects: Option<OsString>,
    alternates: Option<OsString>,
}

impl Quarantine {
    /// Lets a git command see them.
    pub(super) fn show(&self, command: &mut Command) {
        if let (Some(objects), Some(alternates)) = (&self.objects, &self.alternates) {
            command.env("GIT_OBJECT_DIRECTORY", objects).env("GIT_ALTERNATE_OBJECT_DIRECTORIES", alternates);
        }
    }
}

/// Where the hook is.
pub(super) fn path(hooks: &Path) -> PathBuf {
    hooks.join("pre-receive")
}

/// Writes the hook. The file is never half there: git would run the half.
pub(super) fn write(hooks: &Path) -> io::Result<()> {
    std::fs::create_dir_all(hooks)?;
    let partial = hooks.join(".partial");
    std::fs::write(&partial, SCRIPT)?;
    std::fs::set_permissions(&partial, std::fs::Permissions::from_mode(0o700))?;
    std::fs::rename(&partial, path(hooks))
}

/// Reads a question; `None` if the other end closes without one, which is a push that git refused by itself.
///
/// # Errors
/// What is no question, as a sentence.
pub(super) async fn question(from: &mut (impl AsyncBufRead + Unpin)) -> Result<Option<Question>, String> {
    let mut from = from.take(QUESTION);
    let mut question = Question::default();
    let mut line = Vec::new();
    loop {
        line.clear();
        if from.read_until(b'\n', &mut line).await.is_err() || line.is_empty() {
            return if from.limit() == 0 { Err("too many refs in one push".to_owned()) } else { Ok(None) };
        }
        if line.pop() != Some(b'\n') {
            // Cut in the middle: by the limit, or because the hook is gone.
            continue;
        }
        if line == b"end" {
            return Ok(Some(question));
        } else if let Some(path) = line.strip_prefix(b"objects ") {
            question.quarantine.objects = Some(OsString::from_vec(path.to_vec()));
        } else if let Some(path) = line.strip_prefix(b"alternates ") {
            question.quarantine.alternates = Some(OsString::from_vec(path.to_vec()));
        } else if let Some(update) = line.strip_prefix(b"ref ").and_then(parse) {
            question.updates.push(update);
        } else {
            return Err("a ref's name is not one that can be a branch here".to_owned());
        }
    }
}

/// `OLD NEW NAME`.
fn parse(line: &[u8]) -> Option<Update> {
    let line = std::str::from_utf8(line).ok()?;
    let (old, rest) = line.split_once(' ')?;
    let (new, name) = rest.split_once(' ')?;
    let (old, new) = (ObjectId::parse(old)?, ObjectId::parse(new)?);
    Some(Update { old: old.there(), new: new.there(), name: name.to_owned() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    async fn read(bytes: &[u8]) -> Result<Option<Question>, String> {
        question(&mut &bytes[..]).await
    }

    #[tokio::test]
    async fn a_question_is_read_as_the_hook_writes_it() {
        let (none, some) = ("0".repeat(40), "a1".repeat(20));
        let text = format!("objects /d/a b\nalternates /d\nref {none} {some} refs/heads/main\nend\n");
        let question = read(text.as_bytes()).await.unwrap().unwrap();
        assert_eq!(question.updates[0].old, None);
        assert_eq!(question.updates[0].new.as_ref().unwrap().as_str(), some);
        assert_eq!(question.updates[0].name, "refs/heads/main");
        let mut command = Command::new("git");
        question.quarantine.show(&mut command);
        let env: Vec<_> = command.as_std().get_envs().filter_map(|(_, value)| value).collect();
        assert_eq!(env, ["/d", "/d/a b"]);
    }

    #[tokio::test]
    async fn what_is_cut_is_no_question_and_what_is_endless_ends() {
        assert_eq!(read(b"").await, Ok(None));
        assert_eq!(read(b"objects /d\nref 00").await, Ok(None));
        assert!(read(b"nonsense\n").await.is_err());
        assert!(read(&b"objects x\n".repeat(200_000)).await.is_err());
        assert!(read(&vec![b'x'; 2 << 20]).await.is_err());
    }

    /// Runs the hook as git does, with this answer and then nobody. How it ends, and what it printed.
    async fn run(answer: &str) -> (Option<i32>, String) {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path()).unwrap();
        let (mut ours, its) = std::os::unix::net::UnixStream::pair().unwrap();
        io::Write::write_all(&mut ours, answer.as_bytes()).unwrap();
        drop(ours);
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "exec \"$0\" 3<&2 2>/dev/null"]).arg(path(folder.path()));
        command.stdin(std::process::Stdio::null()).stderr(std::os::fd::OwnedFd::from(its)).kill_on_drop(true);
        let ended = tokio::time::timeout(std::time::Duration::from_mins(1), command.output()).await;
        let output = ended.expect("a hook without a server ends").unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    }

    #[tokio::test]
    async fn a_hook_whose_server_is_gone_refuses() {
        // It may end by the signal that writing to nobody is.
        let (status, said) = run("").await;
        assert_ne!((status, said.as_str()), (Some(0), ""));
        let (status, _) = run("+a line\n").await;
        assert_ne!(status, Some(0));
        let (status, _) = run("no\n").await;
        assert_ne!(status, Some(0));
    }

    proptest! {
        #[test]
        fn no_bytes_are_a_fault(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let _ = runtime.block_on(read(&bytes));
            let _ = parse(&bytes);
        }
    }
}
