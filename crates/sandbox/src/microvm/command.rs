//! The command line of QEMU.
//!
//! Nothing in it is a path of the host but its own program: disks, memory, state and streams are descriptors that it is given. So
//! a VMM can be confined to nothing but those, and which file a disk is can't be changed from inside.

use std::ffi::OsString;

/// The descriptors of a VMM, by the numbers under which it has them.
pub(super) mod number {
    /// Its control stream.
    pub(in crate::microvm) const CONTROL: u32 = 10;
    /// The stream to the guest.
    pub(in crate::microvm) const GUEST: u32 = 11;
    /// The guest's memory.
    pub(in crate::microvm) const MEMORY: u32 = 12;
    /// The state it begins with.
    pub(in crate::microvm) const STATE: u32 = 13;
    /// The kernel.
    pub(in crate::microvm) const KERNEL: u32 = 14;
    /// The initramfs.
    pub(in crate::microvm) const INITRAMFS: u32 = 15;
    /// The first disk; the others follow.
    pub(in crate::microvm) const DISKS: u32 = 16;
}

/// Most disks: base, harness, release, session.
pub(super) const DISKS: usize = 4;

/// The stream's name in the guest: the name of a virtio port.
const PORT: &str = "agent.0";

/// How instructions of the guest are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Accelerator {
    /// By the processor.
    Kvm,
    /// By software.
    Tcg,
}

impl Accelerator {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// How a machine begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// From its kernel; its memory is written to the descriptor, to become a snapshot.
    Boot,
    /// From a state, with the memory of the descriptor as it was then. What it writes stays its own.
    Restore,
}

/// What a machine is made of. A snapshot fits the machines that are made the same.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// How it runs.
    pub(super) accelerator: Accelerator,
    /// Memory in MiB.
    pub(super) memory: u64,
    /// Processors.
    pub(super) processors: u32,
}

/// The arguments for a machine. Of its disks all but the last are only read.
pub(super) fn arguments(shape: Shape, start: Start) -> Vec<OsString> {
    let Shape { accelerator, memory, processors } = shape;
    let sharing = match start {
        Start::Boot => "on",
        Start::Restore => "off",
    };
    let cpu = match accelerator {
        Accelerator::Kvm => "host",
        Accelerator::Tcg => "max",
    };
    let mut line: Vec<String> = Vec::new();
    let mut option = |name: &str, value: String| {
        line.push(name.to_owned());
        line.push(value);
    };
    option("-accel", accelerator.name().to_owned());
    option("-machine", "microvm,acpi=off,auto-kernel-cmdline=on,memory-backend=ram".to_owned());
    option("-cpu", cpu.to_owned());
    option("-m", format!("{memory}M"));
    option("-smp", processors.to_string());
    option(
        "-object",
        format!(
            "memory-backend-file,id=ram,size={memory}M,mem-path=/proc/self/fd/{},share={sharing}",
            number::MEMORY
        ),
    );
    option("-chardev", format!("socket,id=control,fd={}", number::CONTROL));
    option("-mon", "chardev=control,mode=control".to_owned());
    option("-device", "virtio-serial-device,max_ports=2".to_owned());
    option("-chardev", format!("socket,id=guest,fd={}", number::GUEST));
    option("-device", format!("virtserialport,chardev=guest,name={PORT},nr=1"));
    for (index, descriptor) in (0..DISKS).zip(number::DISKS..) {
        let read_only = if index + 1 == DISKS { "off,discard=unmap" } else { "on" };
        // Each set holds one descriptor; the file layer opens it as it would a path.
        option("-add-fd", format!("fd={descriptor},set={}", index + 1));
        option(
            "-blockdev",
            format!(
                "driver=file,node-name=disk{index},filename=/dev/fdset/{},locking=off,auto-read-only=off,read-only={read_only}",
                index + 1
            ),
        );
        option("-device", format!("virtio-blk-device,drive=disk{index}"));
    }
    match start {
        Start::Boot => {
            option("-kernel", format!("/proc/self/fd/{}", number::KERNEL));
            option("-initrd", format!("/proc/self/fd/{}", number::INITRAMFS));
            // Nobody reads a console that isn't there; and of network devices there is to be none but the loopback.
            option(
                "-append",
                "quiet loglevel=0 reboot=t panic=-1 random.trust_cpu=on dummy.numdummies=0".to_owned(),
            );
        }
        Start::Restore => option("-incoming", "defer".to_owned()),
    }
    option("-display", "none".to_owned());
    // Its own filter of system calls: no other program, no other user, no other priority.
    option("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".to_owned());
    let flags = ["-nodefaults", "-no-user-config", "-no-reboot"];
    line.extend(flags.map(str::to_owned));
    line.into_iter().map(OsString::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_session_is_written_and_no_path_is_named() {
        let shape = Shape { accelerator: Accelerator::Tcg, memory: 512, processors: 1 };
        for start in [Start::Boot, Start::Restore] {
            let line: Vec<_> =
                arguments(shape, start).into_iter().map(|one| one.into_string().unwrap()).collect();
            let writable: Vec<_> = line.iter().filter(|one| one.contains("read-only=off,discard")).collect();
            assert_eq!(writable.len(), 1);
            assert!(writable[0].contains("node-name=disk3"));
            for one in line.iter().filter(|one| one.contains('/')) {
                assert!(one.contains("/proc/self/fd/") || one.contains("/dev/fdset/"), "{one}");
            }
            let shared = line.iter().any(|one| one.ends_with("share=on"));
            assert_eq!(shared, start == Start::Boot, "what a restored machine writes is its own");
        }
    }
}
