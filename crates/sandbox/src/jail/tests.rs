use karta_guest::jail::{Access, Ids, Item, Limit, Range};
use tokio::io::AsyncReadExt as _;

use super::*;
use crate::cgroup::{Quota, Tree};
use crate::namespace::root::{Owners, base};

const FIRST: u32 = 0x7000_0000;

/// A jail that runs a shell's script as the agent, on the host's programs.
fn script(text: &str) -> Plan {
    let root = rustix::process::geteuid().is_root();
    let me = Ids { user: rustix::process::geteuid().as_raw(), group: rustix::process::getegid().as_raw() };
    let ids = |id| Ids { user: FIRST + id, group: FIRST + id };
    let only = Ids { user: 1000, group: 1000 };
    let owners =
        if root { Owners { root: ids(0), agent: ids(1000) } } else { Owners { root: only, agent: only } };
    let mut items = base(None, owners).unwrap();
    items.push(Item::Memory { to: "/tmp".into(), size: 16 << 20, mode: 0o1777 });
    let range = |outside| {
        if root {
            vec![Range { inside: 0, outside: FIRST, count: 65_536 }]
        } else {
            vec![Range { inside: 1000, outside, count: 1 }]
        }
    };
    Plan {
        privileged: root,
        name: "inside".to_owned(),
        users: range(me.user),
        members: range(me.group),
        user: 1000,
        group: 1000,
        root: 1 << 20,
        items,
        program: Some("/bin/sh".into()),
        arguments: vec![b"sh".to_vec(), b"-c".to_vec(), text.as_bytes().to_vec()],
        environment: vec![b"PATH=/usr/bin:/bin".to_vec()],
        folder: "/tmp".into(),
        limits: vec![Limit { resource: libc::RLIMIT_NOFILE, most: 256 }],
        filter: crate::seccomp::session().unwrap(),
        ..Plan::default()
    }
}

async fn run(plan: &Plan, given: Given) -> (Exit, String) {
    let (jail, mut output) = Launcher::new().unwrap().start(plan, given).await.unwrap();
    let mut text = String::new();
    output.stdout.read_to_string(&mut text).await.unwrap();
    output.stderr.read_to_string(&mut text).await.unwrap();
    (jail.wait().await, text)
}

#[tokio::test]
async fn a_program_runs_in_a_root_of_its_own_without_powers() {
    let text = "echo $(id -u) $(id -un) $(cat /proc/sys/kernel/hostname) $$; cd /; echo *; ls -A /home /root /etc/shadow 2>&1; \
                grep -E 'Cap(Prm|Bnd)|NoNewPrivs|Seccomp:' /proc/self/status; tail -n +3 /proc/net/dev | wc -l; \
                mount -t tmpfs none /tmp; unshare -U true; cat /dev/null; echo x > /x; ls -l /proc/self/fd | wc -l; \
                ulimit -n; exit 7";
    let (exit, text) = run(&script(text), Given::default()).await;
    assert_eq!(exit, Exit { status: Some(7), signal: None }, "{text}");
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], "1000 agent inside 1");
    assert!(!lines[1].contains("work") && lines[1].starts_with("bin dev etc"), "{text}");
    for sign in ["NoNewPrivs:\t1", "Seccomp:\t2", "CapPrm:\t0000000000000000", "CapBnd:\t0000000000000000"] {
        assert!(text.contains(sign), "{sign}: {text}");
    }
    for refused in
        ["/etc/shadow", "must be superuser", "unshare failed: Operation not permitted", "Read-only"]
    {
        assert!(text.contains(refused), "{refused}: {text}");
    }
}

#[tokio::test]
async fn one_id_is_enough() {
    let me = rustix::process::geteuid().as_raw();
    let ids = Ids { user: me, group: rustix::process::getegid().as_raw() };
    let mut plan = script(
        "id -u; echo here > /tmp/x; cat /tmp/x; tty; python3 -c 'import os; print(os.ttyname(os.openpty()[1]))'",
    );
    plan.privileged = false;
    plan.users = vec![Range { inside: 1000, outside: ids.user, count: 1 }];
    plan.members = vec![Range { inside: 1000, outside: ids.group, count: 1 }];
    let only = Ids { user: 1000, group: 1000 };
    plan.items = base(None, Owners { root: only, agent: only }).unwrap();
    plan.items.push(Item::Memory { to: "/tmp".into(), size: 16 << 20, mode: 0o1777 });
    let (_, text) = run(&plan, Given::default()).await;
    assert_eq!(text, "1000\nhere\nnot a tty\n/dev/pts/0\n");
}

#[tokio::test]
async fn what_can_not_be_made_is_told_with_what_was_being_done() {
    let mut plan = script("true");
    plan.program = Some("/no/such".into());
    let error = Launcher::new().unwrap().start(&plan, Given::default()).await.unwrap_err().to_string();
    assert!(error.contains("starting `/no/such` failed") && error.contains("No such file"), "{error}");
    let mut plan = script("true");
    plan.items.push(Item::Bind {
        from: "/no/such".into(),
        to: "/x".into(),
        writable: false,
        devices: false,
        ids: None,
    });
    let error = Launcher::new().unwrap().start(&plan, Given::default()).await.unwrap_err().to_string();
    assert!(error.contains("taking `/no/such` failed"), "{error}");
}

#[tokio::test]
async fn a_reaper_stays_beside_the_program() {
    let mut plan = script("echo $$; (sleep 1000 &) ; exit 9");
    plan.reaper = true;
    let (exit, text) = run(&plan, Given::default()).await;
    assert_eq!((exit.status, text.as_str()), (Some(9), "2\n"));
}

/// The processes whose namespace of processes is that of this one.
fn alike(pid: u32) -> usize {
    let Ok(namespace) = std::fs::read_link(format!("/proc/{pid}/ns/pid")) else { return 0 };
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(|entry| std::fs::read_link(entry.path().join("ns/pid")).is_ok_and(|other| other == namespace))
        .count()
}

async fn line(output: &mut Output) -> String {
    let mut line = String::new();
    while !line.ends_with('\n') {
        line.push(char::from(output.stdout.read_u8().await.unwrap()));
    }
    line.trim_end().to_owned()
}

#[tokio::test]
async fn everything_ends_with_the_handle() {
    let plan = script("(setsid sh -c 'trap \"\" TERM; echo up; while :; do sleep 100; done' &); sleep 1000");
    let (jail, mut output) = Launcher::new().unwrap().start(&plan, Given::default()).await.unwrap();
    assert_eq!(line(&mut output).await, "up");
    let pid = jail.pid();
    assert!(alike(pid) >= 3);
    jail.kill();
    assert_eq!(jail.wait().await.status, Some(128 + 9));
    assert_eq!(alike(pid), 0);
}

#[tokio::test]
async fn everything_ends_with_the_launcher() {
    let (jail, mut output) =
        Launcher::new().unwrap().start(&script("echo up; sleep 1000"), Given::default()).await.unwrap();
    assert_eq!(line(&mut output).await, "up");
    let first = rustix::process::Pid::from_raw(jail.pid().cast_signed()).unwrap();
    let handle = rustix::process::pidfd_open(first, rustix::process::PidfdFlags::empty()).unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", jail.pid())).unwrap();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:\t")).unwrap().parse().unwrap();
    let parent = rustix::process::Pid::from_raw(parent).unwrap();
    rustix::process::kill_process(parent, rustix::process::Signal::KILL).unwrap();
    assert_eq!(jail.wait().await.signal, Some(9));
    // The kernel ends the first process of the jail, which is seen here by its handle.
    let mut ready = [rustix::event::PollFd::new(&handle, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut ready, None).unwrap();
}

fn grouped(plan: &mut Plan, name: &str, quota: Quota) -> Option<Group> {
    let name = format!("test-{}-{name}", std::process::id());
    let group = Tree::find().and_then(|tree| tree.create(&name, quota));
    let group = match group {
        Ok(group) => group,
        Err(error) if !plan.privileged => {
            println!("left out: {error}");
            return None;
        }
        Err(error) => panic!("{error}"),
    };
    plan.groups = group.folders().to_vec();
    Some(group)
}

#[tokio::test]
async fn a_group_limits_memory_and_processes_and_is_gone_afterwards() {
    let text = "python3 -c 'x = bytearray(200 << 20); print(len(x))' ; echo memory $?; \
                i=0; while [ $i -lt 60 ]; do sleep 100 & i=$((i+1)); done; echo started";
    let mut plan = script(text);
    let quota = Quota { memory: 64 << 20, processes: 20, cpu: 100 };
    let Some(group) = grouped(&mut plan, "limits", quota) else { return };
    let folders = group.folders().to_vec();
    let (exit, text) = run(&plan, Given::new(Vec::new(), Some(group), None)).await;
    assert!(text.contains("memory 137") || exit.status == Some(137), "{exit:?} {text}");
    assert!(text.contains("Cannot fork"), "{exit:?} {text}");
    for folder in folders {
        assert!(!folder.exists(), "{}", folder.display());
    }
}

#[tokio::test]
async fn what_never_rests_still_ends() {
    let mut plan = script("i=0; while :; do i=$((i+1)); echo $i; done");
    let quota = Quota { memory: 64 << 20, processes: 20, cpu: 100 };
    let Some(group) = grouped(&mut plan, "pause", quota) else { return };
    let given = Given::new(Vec::new(), Some(group.clone()), None);
    let (jail, mut output) = Launcher::new().unwrap().start(&plan, given).await.unwrap();
    assert_eq!(line(&mut output).await, "1");
    assert!(group.processes().contains(&jail.pid()));
    jail.kill();
    jail.wait().await;
    assert!(group.folders().iter().all(|folder| !folder.exists()));
}

#[tokio::test]
async fn a_disk_has_its_size_and_nothing_stays_of_it() {
    let mut plan = script(
        "df -k /state | tail -1; dd if=/dev/zero of=/state/home/x bs=1M; stat -c %u /state /state/home",
    );
    if !plan.privileged {
        return;
    }
    let file = tempfile::tempfile().unwrap();
    file.set_len(64 << 20).unwrap();
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    let made = std::process::Command::new("mkfs.ext4").args(["-q", "-F", &path]).status().unwrap();
    assert!(made.success());
    let ids = |id| Ids { user: FIRST + id, group: FIRST + id };
    plan.items.push(Item::Disk { descriptor: 0, to: "/state".into(), owner: ids(0) });
    plan.items.push(Item::Folder { to: "/state/home".into(), mode: 0o700, owner: ids(1000) });
    plan.descriptors = vec![None];
    let (_, text) = run(&plan, Given::new(vec![file.into()], None, None)).await;
    assert!(text.contains("No space left on device"), "{text}");
    assert!(text.contains("\n0\n1000\n"), "{text}");
}

#[tokio::test]
async fn files_of_the_host_can_seem_to_be_the_agents() {
    let mut plan = script("stat -c '%u %g' /release/file; cat /release/file; echo x >> /release/file");
    if !plan.privileged {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "content\n").unwrap();
    let (me, agent) = (Ids { user: 0, group: 0 }, Ids { user: FIRST + 1000, group: FIRST + 1000 });
    plan.items.push(Item::Bind {
        from: folder.path().to_owned(),
        to: "/release".into(),
        writable: false,
        devices: false,
        ids: Some((me, agent)),
    });
    let (_, text) = run(&plan, Given::default()).await;
    assert!(text.starts_with("1000 1000\ncontent\n") && text.contains("Read-only"), "{text}");
}

#[tokio::test]
async fn a_group_that_is_kept_opens_what_is_the_group_s_and_no_other() {
    use std::os::unix::fs::PermissionsExt as _;
    const FOREIGN: u32 = 0x6000_0001;
    let mut plan = script("id -G; cat /device && echo more >> /device; cat /other");
    if !plan.privileged {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (name, group) in [("device", FOREIGN), ("other", FOREIGN + 1)] {
        let path = folder.path().join(name);
        std::fs::write(&path, "content\n").unwrap();
        std::os::unix::fs::chown(&path, Some(0), Some(group)).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o660)).unwrap();
        let to = std::path::Path::new("/").join(name);
        plan.items.push(Item::Bind { from: path, to, writable: true, devices: false, ids: None });
    }
    let (_, text) = run(&plan, Given::default()).await;
    assert!(text.starts_with("1000\n") && !text.contains("content"), "{text}");
    plan.kept = vec![FOREIGN];
    let (_, text) = run(&plan, Given::default()).await;
    assert!(text.starts_with("1000 65534\ncontent\n") && text.matches("content").count() == 1, "{text}");
    let device = std::fs::read_to_string(folder.path().join("device")).unwrap();
    assert_eq!(device, "content\nmore\n");
}

#[tokio::test]
async fn a_program_gets_its_descriptors_and_no_others() {
    let mut plan = script("cat <&7; ls /proc/self/fd | sort -n | tr '\\n' ' '");
    let (read, write) = std::io::pipe().unwrap();
    let mut writer = std::fs::File::from(OwnedFd::from(write));
    writer.write_all(b"through seven\n").unwrap();
    drop(writer);
    plan.descriptors = vec![Some(7)];
    let (_, text) = run(&plan, Given::new(vec![read.into()], None, None)).await;
    assert_eq!(text, "through seven\n0 1 2 3 7 ");
}

#[tokio::test]
async fn rules_on_files_hold_where_the_kernel_has_them() {
    let text = "cat /proc/version > /dev/null && echo read; echo x > /tmp/x && echo written; echo x > /dev/shm/x && echo WRITTEN; \
                perl -e 'use Socket; socket(my $s, PF_INET, SOCK_STREAM, 0); print bind($s, sockaddr_in(4000, INADDR_LOOPBACK)) ? \"BOUND\" : \"not bound\"'";
    let mut plan = script(text);
    let rule = |path: &str, writable| Access { path: path.into(), writable };
    plan.access = Some(vec![rule("/", false), rule("/tmp", true), rule("/dev/null", true)]);
    let (jail, mut output) = Launcher::new().unwrap().start(&plan, Given::default()).await.unwrap();
    let mut said = String::new();
    output.stdout.read_to_string(&mut said).await.unwrap();
    jail.wait().await;
    match jail.landlock() {
        0 => assert_eq!(karta_guest::jail::landlock(), 0),
        1..4 => assert!(said.starts_with("read\nwritten\n") && !said.contains("WRITTEN"), "{said}"),
        _ => assert_eq!(said, "read\nwritten\nnot bound"),
    }
}
