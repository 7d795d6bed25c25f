//! What a push means: which branches are published as what. Pure.
//!
//! `main` (or `master`) is what is live, every other branch is a preview of its name. All of it is judged before any of it is built.

use std::collections::{BTreeMap, BTreeSet};

/// Branches in one push.
const MOST: usize = 20;
/// Characters of a preview's name.
const NAME: usize = 63;
/// Bytes of a branch's name that a sentence shows.
const SHOWN: usize = 100;

/// A git object's id: 40 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ObjectId(String);

impl ObjectId {
    /// Reads one.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let digits = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        (text.len() == 40 && digits).then(|| Self(text.to_owned()))
    }

    /// Itself, unless it is the one that stands for nothing.
    pub(super) fn there(self) -> Option<Self> {
        (!self.0.bytes().all(|byte| byte == b'0')).then_some(self)
    }

    /// Its text.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// As much of it as people read.
    pub(super) fn short(&self) -> &str {
        self.0.get(..7).unwrap_or(&self.0)
    }
}

/// A ref that is to be changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Update {
    /// What the pusher believes it is; nothing if it is new.
    pub(super) old: Option<ObjectId>,
    /// What it shall be; nothing if it shall go.
    pub(super) new: Option<ObjectId>,
    /// Its full name.
    pub(super) name: String,
}

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// A branch is published: live, or as the preview of this name.
    Publish {
        /// The branch.
        branch: String,
        /// What it shall be.
        commit: ObjectId,
        /// The preview; absent is live.
        preview: Option<String>,
    },
    /// A branch goes, and its preview.
    Remove {
        /// The branch.
        branch: String,
        /// The preview.
        preview: String,
    },
}

/// What these updates mean for a repository with these branches (by full name): previews first, then what is live, then what goes.
///
/// # Errors
/// Why nothing of it is done, as a sentence for the pusher.
pub(super) fn plan(updates: &[Update], refs: &BTreeMap<String, ObjectId>) -> Result<Vec<Step>, String> {
    if updates.len() > MOST {
        return Err(format!(
            "{} branches in one push are too many; push at most {MOST} at once",
            updates.len()
        ));
    }
    let (mut previews, mut live, mut gone) = (Vec::new(), Vec::new(), Vec::new());
    let mut after: BTreeSet<&str> = refs.keys().map(String::as_str).collect();
    let mut changed = BTreeSet::new();
    for update in updates {
        let branch = branch(&update.name)?;
        if !changed.insert(branch) {
            return Err(format!("`{}` is in this push twice", shown(branch)));
        }
        if refs.get(&update.name) != update.old.as_ref() {
            return Err(format!("another push moved `{}` meanwhile; push again", shown(branch)));
        }
        let preview = if is_live(branch) { None } else { Some(preview_name(branch)?) };
        match (&update.new, preview) {
            (Some(commit), preview) => {
                after.insert(&update.name);
                let list = if preview.is_some() { &mut previews } else { &mut live };
                list.push(Step::Publish { branch: branch.to_owned(), commit: commit.clone(), preview });
            }
            (None, Some(preview)) => {
                after.remove(update.name.as_str());
                gone.push(Step::Remove { branch: branch.to_owned(), preview });
            }
            (None, None) => {
                return Err(format!(
                    "`{branch}` can't be deleted: it is what is live. `karta rollback` goes back to the release before"
                ));
            }
        }
    }
    if live.len() > 1 {
        return Err("`main` and `master` are both what is live: push one of them".to_owned());
    }
    check_apart(updates, refs, &after)?;
    previews.append(&mut live);
    // A preview that another branch has from now on stays.
    gone.retain(|step| match step {
        Step::Remove { preview: going, .. } => !previews
            .iter()
            .any(|kept| matches!(kept, Step::Publish { preview: Some(name), .. } if name == going)),
        Step::Publish { .. } => true,
    });
    previews.append(&mut gone);
    Ok(previews)
}

/// The branch of a ref's full name.
fn branch(name: &str) -> Result<&str, String> {
    if let Some(tag) = name.strip_prefix("refs/tags/") {
        return Err(format!(
            "tags are not taken (`{}`): push a branch; every release has a number of its own",
            shown(tag)
        ));
    }
    name.strip_prefix("refs/heads/")
        .ok_or_else(|| format!("`{}` is not a branch; push to `refs/heads/…`", shown(name)))
}

/// The preview of a ref's full name, if it is a branch that has one.
pub(super) fn preview_of(name: &str) -> Option<String> {
    let branch = name.strip_prefix("refs/heads/").filter(|branch| !is_live(branch))?;
    preview_name(branch).ok()
}

fn is_live(branch: &str) -> bool {
    matches!(branch, "main" | "master")
}

/// What the preview of a branch is called: its letters and digits, small, and `-` for what is between them.
fn preview_name(branch: &str) -> Result<String, String> {
    let cannot = |why: &str| Err(format!("the branch `{}` can't name a preview: {why}", shown(branch)));
    let mut name = String::with_capacity(branch.len());
    for letter in branch.chars() {
        if letter.is_ascii_alphanumeric() {
            name.push(letter.to_ascii_lowercase());
        } else if !letter.is_ascii_graphic() {
            return cannot("only letters a to z, digits and punctuation can be in it");
        } else if !name.is_empty() && !name.ends_with('-') {
            name.push('-');
        }
    }
    let name = name.trim_end_matches('-');
    if name.is_empty() {
        return cannot("there is no letter or digit in it");
    }
    if name.len() > NAME {
        return cannot(&format!("it has more than {NAME} characters"));
    }
    if is_live(name) {
        return cannot(&format!("`{name}` is what is live"));
    }
    Ok(name.to_owned())
}

/// No two branches have one preview, and none is a folder of another, which git can't keep.
fn check_apart(
    updates: &[Update],
    refs: &BTreeMap<String, ObjectId>,
    after: &BTreeSet<&str>,
) -> Result<(), String> {
    let below = |a: &str, b: &str| a.strip_prefix(b).is_some_and(|rest| rest.starts_with('/'));
    let pushed = updates.iter().filter(|update| update.new.is_some());
    for name in pushed.map(|update| update.name.as_str()) {
        let one = branch(name)?;
        // git does not promise to delete before it makes, so what goes in this push still counts here.
        let all = after.iter().copied().chain(refs.keys().map(String::as_str));
        for other in all.filter(|other| *other != name) {
            let two = branch(other)?;
            if below(one, two) || below(two, one) {
                return Err(format!(
                    "the branches `{}` and `{}` can't be side by side: delete the other in a push of its own",
                    shown(one),
                    shown(two)
                ));
            }
            if after.contains(other)
                && !is_live(one)
                && !is_live(two)
                && preview_name(one) == preview_name(two)
            {
                return Err(format!(
                    "the branches `{}` and `{}` would have the same preview: rename one, or delete the other first",
                    shown(one),
                    shown(two)
                ));
            }
        }
    }
    Ok(())
}

/// A name as it can stand in a sentence.
fn shown(name: &str) -> String {
    let shown: String = name.chars().filter(|letter| !letter.is_control()).take(SHOWN).collect();
    if shown.len() < name.len() { format!("{shown}…") } else { shown }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(digit: char) -> ObjectId {
        ObjectId::parse(&digit.to_string().repeat(40)).unwrap()
    }

    fn refs(branches: &[&str]) -> BTreeMap<String, ObjectId> {
        branches.iter().map(|branch| (format!("refs/heads/{branch}"), id('a'))).collect()
    }

    fn push(branch: &str, old: Option<char>, new: Option<char>) -> Update {
        Update { old: old.map(id), new: new.map(id), name: format!("refs/heads/{branch}") }
    }

    fn refused(updates: &[Update], known: &[&str]) -> String {
        plan(updates, &refs(known)).unwrap_err()
    }

    #[test]
    fn what_is_live_comes_after_the_previews_and_before_what_goes() {
        let updates = [
            push("old", Some('a'), None),
            push("main", Some('a'), Some('b')),
            push("Feature/Name", None, Some('c')),
        ];
        let steps = plan(&updates, &refs(&["main", "old"])).unwrap();
        let names: Vec<_> = steps
            .iter()
            .map(|step| match step {
                Step::Publish { branch, preview, .. } => (branch.as_str(), preview.as_deref()),
                Step::Remove { branch, preview } => (branch.as_str(), Some(preview.as_str())),
            })
            .collect();
        assert_eq!(names, [("Feature/Name", Some("feature-name")), ("main", None), ("old", Some("old"))]);
    }

    #[test]
    fn each_thing_that_is_not_done_has_its_sentence() {
        let tag = Update { old: None, new: Some(id('b')), name: "refs/tags/v1".to_owned() };
        assert!(refused(&[tag], &[]).contains("tags are not taken"));
        let note = Update { old: None, new: Some(id('b')), name: "refs/notes/x".to_owned() };
        assert!(refused(&[note], &[]).contains("not a branch"));
        assert!(refused(&[push("main", Some('a'), None)], &["main"]).contains("can't be deleted"));
        assert!(refused(&[push("main", None, Some('b'))], &["main"]).contains("push again"));
        assert!(refused(&[push("x", Some('a'), None)], &[]).contains("push again"));
        assert!(
            refused(&[push("main", None, Some('b')), push("master", None, Some('b'))], &[]).contains("both")
        );
        assert!(refused(&[push("pr/1", None, Some('b'))], &["pr-1"]).contains("same preview"));
        assert!(
            refused(&[push("PR.1", None, Some('b')), push("pr_1", None, Some('b'))], &[])
                .contains("same preview")
        );
        assert!(refused(&[push("a/b", None, Some('b'))], &["a"]).contains("side by side"));
        assert!(refused(&[push("main/b", None, Some('b'))], &["main"]).contains("side by side"));
        assert!(refused(&[push("grün", None, Some('b'))], &[]).contains("a to z"));
        assert!(refused(&[push("++", None, Some('b'))], &[]).contains("no letter"));
        assert!(refused(&[push("Main", None, Some('b'))], &[]).contains("is what is live"));
        assert!(refused(&[push(&"x".repeat(64), None, Some('b'))], &[]).contains("more than 63"));
        let many: Vec<_> = (0..21).map(|number| push(&format!("b{number}"), None, Some('b'))).collect();
        assert!(refused(&many, &[]).contains("too many"));
        let twice = [push("x", None, Some('b')), push("x", None, Some('c'))];
        assert!(refused(&twice, &[]).contains("twice"));
    }

    #[test]
    fn a_name_is_free_again_once_its_branch_goes() {
        let updates = [push("pr-1", Some('a'), None), push("pr/1", None, Some('b'))];
        let steps = plan(&updates, &refs(&["pr-1"])).unwrap();
        assert!(
            matches!(steps.as_slice(), [Step::Publish { .. }]),
            "the preview is the new branch's: {steps:?}"
        );
    }

    proptest! {
        #[test]
        fn no_name_is_a_fault_and_every_preview_has_a_plain_one(name in "\\PC{0,80}") {
            let update = Update { old: None, new: Some(id('b')), name: format!("refs/heads/{name}") };
            if let Ok(steps) = plan(&[update], &BTreeMap::new()) {
                for step in steps {
                    if let Step::Publish { preview: Some(preview), .. } = step {
                        prop_assert!(preview.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'));
                        prop_assert!(!preview.starts_with('-') && !preview.ends_with('-') && !preview.is_empty());
                    }
                }
            }
        }
    }
}
