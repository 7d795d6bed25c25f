//! At the kernel: powers, other processes, and its rarely used parts.

use karta_sandbox::Driver;
use libc as c;

use super::{apart, attack, perl, refused, said};
use crate::support::{World, acquire, line, run, script};

pub(super) async fn look_into_the_first_process(driver: &dyn Driver, world: &World) {
    refused(
        driver,
        world,
        &[
            ("attach", c::SYS_ptrace, "16, 1, 0, 0"),
            ("seize", c::SYS_ptrace, "0x4206, 1, 0, 0"),
            ("trace-me", c::SYS_ptrace, "0, 0, 0, 0"),
            ("read-memory", c::SYS_process_vm_readv, "1, 0, 0, 0, 0, 0"),
            ("write-memory", c::SYS_process_vm_writev, "1, 0, 0, 0, 0, 0"),
            ("take-descriptor", c::SYS_pidfd_getfd, "0, 3, 0"),
            ("compare", c::SYS_kcmp, "1, 1, 0, 0, 0"),
        ],
    )
    .await;
    let text = "for file in mem environ maps auxv stack syscall; do cat /proc/1/$file > /dev/null && echo READ $file; done\n\
                echo x > /proc/1/mem && echo WRITTEN\n\
                ls /proc/1/fd /proc/1/cwd/ /proc/1/root/ && echo LISTED\n\
                cat /proc/1/exe > /dev/null && echo COPIED\n\
                echo tried";
    let output = attack(driver, world, text).await;
    assert!(output.ends_with("tried\n"), "{output}");
    for sign in ["READ", "WRITTEN", "LISTED", "COPIED"] {
        assert!(!output.contains(sign), "{sign}: {output}");
    }
}

/// Looks into every process that is not the session's own user's, above all into the one that keeps this program; and into a program
/// that started this one, which is the same user and no secret from it.
pub(super) async fn look_into_what_keeps_the_programs(driver: &dyn Driver, world: &World) {
    let sandbox = acquire(driver, &world.spec(1, "a")).await;
    let mut other = sandbox.spawn(&script(&*sandbox, "echo up; read word")).await.unwrap();
    assert_eq!(line(&mut other).await, "up");
    let text = "look() { for file in environ maps auxv stack syscall io; do \
                  [ $(dd if=$1/$file bs=1 count=1 | wc -c) = 0 ] || echo READ $1/$file; done\n\
                  (: < $1/mem) && echo READ $1/mem; (: > $1/mem) && echo WRITTEN $1; \
                  ls $1/fd $1/cwd/ $1/root/ && echo LISTED $1; cat $1/exe > /dev/null && echo COPIED $1; }\n\
                exec 2> /dev/null\n\
                echo keeper $PPID; look /proc/$PPID\n\
                for p in /proc/[0-9]*; do \
                  user=$(sed -n 's/^Uid:.\\([0-9]*\\).*/\\1/p' $p/status); \
                  [ -n \"$user\" ] && [ \"$user\" != $(id -u) ] && echo another $p && look $p; done\n\
                tr '\\0' '\\n' < /proc/$$/environ | grep -x 'HELD=by-the-other'\n\
                echo tried; look /proc/$$";
    let mut command = script(&*sandbox, text);
    command.env.push(("HELD".to_owned(), "by-the-other".to_owned()));
    let output = run(&*sandbox, &command, "").await.0;
    let (output, own) = output.split_once("tried\n").expect(&output);
    for sign in ["READ", "WRITTEN", "LISTED", "COPIED"] {
        assert!(own.contains(sign), "what looks finds what is there: {own}");
    }
    let keeper: u32 = output
        .lines()
        .find_map(|line| line.strip_prefix("keeper "))
        .and_then(|pid| pid.parse().ok())
        .unwrap();
    assert!(keeper > 1, "{output}");
    if apart(driver) {
        // The first process, and what keeps each of the two programs.
        assert!(output.lines().filter(|line| line.starts_with("another ")).count() >= 3, "{output}");
        assert!(output.contains(&format!("another /proc/{keeper}\n")), "{output}");
        for sign in ["READ", "WRITTEN", "LISTED", "COPIED"] {
            assert!(!output.contains(sign), "{sign}: {output}");
        }
    }
    assert!(output.contains("HELD=by-the-other\n"), "who was started reads who started it: {output}");
    drop(other.stdin);
    other.control.wait().await;
}

pub(super) async fn end_the_first_process(driver: &dyn Driver, world: &World) {
    let sandbox = acquire(driver, &world.spec(1, "a")).await;
    let mut other = sandbox.spawn(&script(&*sandbox, "echo up; read word; echo $word")).await.unwrap();
    assert_eq!(line(&mut other).await, "up");
    let text = "for signal in KILL TERM STOP SEGV ABRT INT HUP; do kill -$signal 1 && echo SENT $signal; done\n\
                for process in $(ls /proc | grep '^[0-9]'); do [ $process = $$ ] || kill -9 $process; done\n\
                kill -9 -1; echo tried";
    let output = said(&*sandbox, text).await.0;
    assert!(!apart(driver) || output.contains("tried") && !output.contains("SENT"), "{output}");
    // What else the session runs it may or may not end, as the kernel's rules are; what keeps it, it can't.
    drop(other.stdin);
    other.control.wait().await;
    assert_eq!(said(&*sandbox, "echo alive").await.0, "alive\n");
}

pub(super) async fn load_a_kernel_or_a_module(driver: &dyn Driver, world: &World) {
    refused(
        driver,
        world,
        &[
            ("kexec", c::SYS_kexec_load, "0, 0, 0, 0"),
            ("kexec-file", c::SYS_kexec_file_load, "0, 0, 0, 0, 0"),
            ("module", c::SYS_init_module, "0, 0, 0"),
            ("module-file", c::SYS_finit_module, "0, 0, 0"),
            ("module-out", c::SYS_delete_module, "\"loop\", 0"),
            ("reboot", c::SYS_reboot, "0xfee1dead, 672274793, 0x89abcdef, 0"),
            ("ports", c::SYS_iopl, "3"),
        ],
    )
    .await;
}

pub(super) async fn mount_something(driver: &dyn Driver, world: &World) {
    refused(
        driver,
        world,
        &[
            ("mount", c::SYS_mount, "\"none\", \"/tmp\", \"tmpfs\", 0, 0"),
            ("remount", c::SYS_mount, "\"none\", \"/\", \"\", 32, 0"),
            ("bind", c::SYS_mount, "\"/proc\", \"/tmp\", \"\", 4096, 0"),
            ("unmount", c::SYS_umount2, "\"/proc\", 2"),
            ("open-tree", c::SYS_open_tree, "-100, \"/\", 1"),
            ("move", c::SYS_move_mount, "-1, \"\", -100, \"/tmp\", 4"),
            ("context", c::SYS_fsopen, "\"tmpfs\", 0"),
            ("attributes", c::SYS_mount_setattr, "-100, \"/\", 0, 0, 0"),
            ("pivot", c::SYS_pivot_root, "\"/tmp\", \"/tmp\""),
            ("root", c::SYS_chroot, "\"/tmp\""),
            ("swap", c::SYS_swapon, "\"/tmp/x\", 0"),
        ],
    )
    .await;
}

pub(super) async fn become_root_in_a_user_namespace(driver: &dyn Driver, world: &World) {
    let (user, all) = (0x1000_0000, 0x7c02_0000);
    refused(
        driver,
        world,
        &[
            ("unshare-user", c::SYS_unshare, &user.to_string()),
            ("unshare-all", c::SYS_unshare, &all.to_string()),
            ("unshare-time", c::SYS_unshare, "0x80"),
            ("clone-user", c::SYS_clone, &format!("{}, 0, 0, 0, 0", user + 17)),
            ("clone-high-bits", c::SYS_clone, &format!("{}, 0, 0, 0, 0", 0x1_0000_0000_u64 + (user + 17))),
            ("clone3", 435, "0, 0"),
        ],
    )
    .await;
    let output =
        attack(driver, world, "unshare -Ur id -u; unshare -m true && echo MADE; cat /proc/self/uid_map")
            .await;
    assert!(!output.contains("MADE") && !output.lines().any(|line| line == "0"), "{output}");
}

pub(super) async fn join_a_namespace_of_the_host(driver: &dyn Driver, world: &World) {
    refused(
        driver,
        world,
        &[
            ("join", c::SYS_setns, "0, 0"),
            ("handle", c::SYS_open_by_handle_at, "-100, 0, 0"),
            ("name", c::SYS_name_to_handle_at, "-100, \"/\", 0, 0, 0"),
        ],
    )
    .await;
}

pub(super) async fn use_rarely_needed_parts_of_the_kernel(driver: &dyn Driver, world: &World) {
    refused(
        driver,
        world,
        &[
            ("bpf", c::SYS_bpf, "0, 0, 0"),
            ("perf", c::SYS_perf_event_open, "0, 0, -1, -1, 0"),
            ("io-uring", c::SYS_io_uring_setup, "8, 0"),
            ("io-uring-enter", c::SYS_io_uring_enter, "0, 1, 0, 0, 0, 0"),
            ("faults", c::SYS_userfaultfd, "0"),
            ("keys", c::SYS_keyctl, "0, -3, 0, 0, 0"),
            ("key", c::SYS_add_key, "\"user\", \"x\", \"y\", 1, -3"),
            ("fanotify", c::SYS_fanotify_init, "0, 0"),
            ("accounting", c::SYS_acct, "0"),
            ("quota", c::SYS_quotactl, "0, 0, 0, 0"),
            ("log", c::SYS_syslog, "3, 0, 0"),
            ("pages", c::SYS_move_pages, "1, 0, 0, 0, 0, 0"),
            ("segments", c::SYS_modify_ldt, "0, 0, 0"),
            ("unknown", 999, ""),
            ("clock", c::SYS_clock_settime, "0, 0"),
            ("host-name", c::SYS_sethostname, "\"x\", 1"),
        ],
    )
    .await;
}

pub(super) async fn use_the_calls_of_another_architecture(driver: &dyn Driver, world: &World) {
    // The numbers of the ABI with 32-bit pointers, and those of 32-bit programs by their own instruction: `mov eax, 20; int 0x80; ret`
    // in memory that may be executed. The first is refused, the second ends the process.
    refused(
        driver,
        world,
        &[("x32-getpid", 0x4000_0000 + 39, ""), ("x32-ptrace", 0x4000_0000 + 521, "16, 1, 0, 0")],
    )
    .await;
    let text = perl(
        "my $m = syscall(9, 0, 4096, 7, 34, -1, 0); my $code = \"\\xb8\\x14\\0\\0\\0\\xcd\\x80\\xc3\"; \
         pipe(my $r, my $w) or die; syswrite($w, $code) == 8 or die; syscall(0, fileno($r), $m, 8) == 8 or die; \
         require DynaLoader; my $sub = DynaLoader::dl_install_xsub(\"main::go\", $m); \
         print \"calling\\n\"; go(); print \"RETURNED\\n\";",
    );
    let output = attack(driver, world, &format!("{text}echo ended $?")).await;
    assert!(output.contains("calling\n") && !output.contains("RETURNED"), "{output}");
    // SIGSYS; or SIGSEGV where the kernel has no such calls.
    assert!(output.contains("ended 159") || output.contains("ended 139"), "{output}");
}

pub(super) async fn change_the_kernels_settings(driver: &dyn Driver, world: &World) {
    // What is hidden is `/dev/null`, which takes anything.
    let text = "for file in sys/kernel/core_pattern sys/kernel/modprobe sys/kernel/hostname sys/vm/overcommit_memory \
                sys/net/ipv4/ip_forward sys/user/max_user_namespaces sysrq-trigger 1/oom_score_adj; do\n\
                [ \"$(stat -c %t:%T /proc/$file)\" = 1:3 ] && continue\n\
                echo 1 > /proc/$file && echo CHANGED $file\n\
                done\n\
                mkdir /sys/fs/cgroup/x && echo CHANGED cgroup\n\
                echo $$ > /sys/fs/cgroup/cgroup.procs && echo CHANGED cgroup\n\
                cat /proc/kcore /proc/kmsg > /dev/null && echo READ\n\
                ls /sys/kernel/debug /sys/firmware/* && echo READ\n\
                grep -v ' 0000000000000000\\|^0000000000000000 ' /proc/kallsyms | head -1 | grep . && echo READ symbols\n\
                echo tried";
    let output = attack(driver, world, text).await;
    assert!(output.ends_with("tried\n"), "{output}");
    assert!(!output.contains("CHANGED") && !output.contains("READ"), "{output}");
}

pub(super) async fn gain_powers_by_a_program(driver: &dyn Driver, world: &World) {
    let text = "cp /bin/sh ~/sh; cp /bin/sh /workspace/sh; chmod 6755 ~/sh /workspace/sh\n\
                cd; HOME=/home/agent; for sh in /home/agent/sh /workspace/sh; do $sh -p -c 'id -u; grep CapEff /proc/self/status'; done\n\
                find / -xdev -perm -4000 -type f 2>/dev/null | while read program; do\n\
                [ -u $program ] && stat -f -c %T $program > /dev/null\n\
                done\n\
                su root -c 'echo ROOT' < /dev/null; sudo -n echo ROOT\n\
                perl -e '$> = 0; $< = 0; print \"now $> $<\\n\"; $) = 0; print \"ROOT\\n\" if $> == 0 || $< == 0'\n\
                grep -E 'NoNewPrivs|CapPrm|CapBnd|CapAmb' /proc/self/status; echo tried";
    let output = attack(driver, world, text).await;
    assert!(output.ends_with("tried\n") && !output.contains("ROOT"), "{output}");
    assert!(output.contains("NoNewPrivs:\t1"), "{output}");
    for line in output.lines().filter(|line| line.starts_with("Cap")) {
        assert!(line.ends_with("0000000000000000"), "{output}");
    }
    assert!(!output.lines().any(|line| line == "0"), "{output}");
}

pub(super) async fn make_device_nodes(driver: &dyn Driver, world: &World) {
    let mknod = c::SYS_mknodat;
    refused(
        driver,
        world,
        &[
            ("memory", mknod, "-100, \"/workspace/mem\", 0x21b6, 0x101"),
            ("disk", mknod, "-100, \"/workspace/disk\", 0x61b6, 0xfe00"),
            ("whiteout", mknod, "-100, \"/workspace/gone\", 0x21b6, 0"),
        ],
    )
    .await;
    let text = "for node in mem kmem port kvm loop0 loop-control vda sda fuse net/tun mapper/control; do\n\
                (exec 3<>/dev/$node) && echo OPENED $node\n\
                done\n\
                find / -xdev -type b 2>/dev/null\n\
                mkfifo /workspace/pipe && echo a pipe is fine";
    let output = attack(driver, world, text).await;
    assert!(output.ends_with("a pipe is fine\n") && !output.contains("OPENED"), "{output}");
}
