use std::os::unix::fs::PermissionsExt as _;

use super::*;

#[test]
fn a_device_is_opened_by_its_group_and_never_by_root_s() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let file = tempfile::tempfile().unwrap();
    let seen = |mode, group| {
        std::os::unix::fs::fchown(&file, None, Some(group)).unwrap();
        file.set_permissions(std::fs::Permissions::from_mode(mode)).unwrap();
        kept(&file.metadata().unwrap())
    };
    assert_eq!(seen(0o660, 104), Ok(Some(104)));
    assert_eq!(seen(0o666, 104), Ok(None));
    for (mode, group) in [(0o600, 0), (0o600, 104), (0o660, 0), (0o640, 104)] {
        let why = seen(mode, group).unwrap_err();
        assert!(why.contains("chmod 0660 /dev/kvm") && why.contains("groupadd -f -r kvm"), "{why}");
    }
}

#[test]
fn only_groups_of_the_same_data_directory_that_nobody_uses_are_swept() {
    let made = Tree::find().and_then(|tree| tree.probe().map(|()| tree));
    let tree = match made {
        Ok(tree) => tree,
        Err(error) => {
            assert!(!rustix::process::geteuid().is_root(), "{error}");
            println!("left out: {error}");
            return;
        }
    };
    let folder = tempfile::tempdir().unwrap();
    let prefix = |name: &str| format!("{GROUP}{}", tag(&Machines::new(folder.path().join(name))));
    let (own, others) = (prefix("one"), prefix("two"));
    let quota = Quota { memory: 64 << 20, processes: 8, cpu: 100 };
    // The last process number that there can be is nobody's.
    let (gone, me) = (4_194_304, std::process::id());
    let group = |name: String| tree.create(&name, quota).unwrap();
    let live = Live::new(format!("{own}{me}-0"));
    let kept = [
        group(format!("{own}{me}-0")),
        group(format!("{own}{}-0", std::os::unix::process::parent_id())),
        group(format!("{others}{gone}-0")),
    ];
    let left = [group(format!("{own}{gone}-0")), group(format!("{own}{me}-1"))];
    assert_eq!(sweep(&tree, &own), 2);
    assert_eq!(sweep(&tree, &own), 0);
    let there = |group: &Group| group.folders().iter().all(|folder| folder.exists());
    assert!(kept.iter().all(there) && !left.iter().any(there));
    drop(live);
    assert_eq!(sweep(&tree, &own), 1);
    assert!(kept.iter().all(Group::remove));
}
