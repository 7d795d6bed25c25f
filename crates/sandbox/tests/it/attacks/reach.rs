//! Out of the sandbox: files, processes and services of the host and of others.

use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;

use karta_sandbox::Driver;

use super::{attack, perl, refused, said};
use crate::support::{World, acquire, line, script};

const SECRET: &str = "vYh3-the-secret-of-somebody-else";

pub(super) async fn read_the_hosts_files(driver: &dyn Driver, world: &World) {
    let path = world.folder.path().join("secret");
    std::fs::write(&path, SECRET).unwrap();
    let path = path.display();
    let text = format!(
        "cat {path} /proc/*/root{path} /proc/*/cwd{path} /proc/self/fd/*/{path} /../../..{path}\n\
         cat /etc/shadow && echo READ\n\
         cd /workspace/../../.. && cat .{path}\n\
         for fd in /proc/*/fd/*; do ls $fd/ ; done | grep -c -x -e etc -e home\n\
         ls -A /root /home/*/.ssh /var/lib /srv /mnt /media && echo LISTED\n\
         echo tried"
    );
    let output = attack(driver, world, &text).await;
    assert!(output.ends_with("tried\n"), "{output}");
    for sign in [SECRET, "READ", "LISTED"] {
        assert!(!output.contains(sign), "{sign}: {output}");
    }
}

pub(super) async fn see_other_sessions(driver: &dyn Driver, world: &World) {
    let victim = acquire(driver, &world.spec(2, "a")).await;
    victim.put(Path::new("secret-file"), SECRET.as_bytes()).await.unwrap();
    let mut command =
        script(&*victim, &format!("echo {SECRET} > /tmp/secret-file; echo up; exec sleep 1000 # {SECRET}"));
    command.env.push(("HIDDEN".to_owned(), SECRET.to_owned()));
    let mut process = victim.spawn(&command).await.unwrap();
    assert_eq!(line(&mut process).await, "up");
    let output = attack(
        driver,
        world,
        "find / -name secret-file 2>/dev/null\n\
         cat /proc/*/cmdline /proc/*/environ | tr '\\0' ' '\n\
         cat /tmp/secret-file /home/agent/secret-file /proc/*/root/tmp/secret-file\n\
         ls /proc | grep -c '^[0-9]'",
    )
    .await;
    assert!(!output.contains("secret-of-somebody-else"), "{output}");
    // Its own few processes are all there are: this one's, and in a virtual machine the kernel's.
    assert!(!output.contains("sleep 1000"), "{output}");
}

pub(super) async fn look_into_the_server(driver: &dyn Driver, world: &World) {
    let server = std::process::id();
    let program = std::env::current_exe().unwrap();
    let name = program.file_name().unwrap().to_str().unwrap().to_owned();
    let text = format!(
        "cat /proc/{server}/environ /proc/{server}/mem /proc/{server}/cmdline && echo RE''AD\n\
         cat /proc/*/cmdline | tr '\\0' '\\n'\n\
         readlink /proc/*/exe\n\
         kill -0 {server} && echo FO''UND\n\
         ls /proc/1/root/ /proc/1/cwd/ /proc/1/fd/\n\
         env\n\
         echo tried"
    );
    let output = attack(driver, world, &text).await;
    assert!(output.ends_with("tried\n"), "{output}");
    for sign in ["READ", "FOUND", name.as_str(), "CARGO", "NEXTEST"] {
        assert!(!output.contains(sign), "{sign}: {output}");
    }
}

pub(super) async fn reach_a_service_of_the_host(driver: &dyn Driver, world: &World) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let hidden = format!("karta-test-{}", std::process::id());
    let hidden_listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&hidden).unwrap()).unwrap();
    hidden_listener.set_nonblocking(true).unwrap();
    let visible = world.folder.path().join("socket");
    let visible_listener = UnixListener::bind(&visible).unwrap();
    visible_listener.set_nonblocking(true).unwrap();
    let text = format!(
        "use Socket; \
         for my $host (\"127.0.0.1\", \"127.0.0.2\", \"0.0.0.0\") {{ \
             socket(my $s, PF_INET, SOCK_STREAM, 0) or die; \
             print connect($s, sockaddr_in({port}, inet_aton($host))) ? \"REACHED\\n\" : \"$host: $!\\n\"; \
         }} \
         for my $path (\"\\0{hidden}\", \"{}\") {{ \
             socket(my $s, PF_UNIX, SOCK_STREAM, 0) or die; \
             print connect($s, sockaddr_un($path)) ? \"REACHED\\n\" : \"unix: $!\\n\"; \
         }} \
         print \"tried\\n\";",
        visible.display()
    );
    let output = attack(driver, world, &perl(&text)).await;
    assert!(output.ends_with("tried\n") && !output.contains("REACHED"), "{output}");
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(hidden_listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(visible_listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}

pub(super) async fn reach_another_sandbox(driver: &dyn Driver, world: &World) {
    let victim = acquire(driver, &world.spec(2, "a")).await;
    let listen = perl(
        "use Socket; socket(my $s, PF_INET, SOCK_STREAM, 0) or die; \
         bind($s, sockaddr_in(4999, INADDR_ANY)) or die; listen($s, 5) or die; \
         socket(my $u, PF_UNIX, SOCK_STREAM, 0) or die; \
         bind($u, sockaddr_un(\"\\0karta-victim\")) or die; listen($u, 5) or die; \
         print \"up\\n\"; sleep 1000;",
    );
    let mut process = victim.spawn(&script(&*victim, &listen)).await.unwrap();
    assert_eq!(line(&mut process).await, "up");
    let text = "use Socket; socket(my $s, PF_INET, SOCK_STREAM, 0) or die; \
                print connect($s, sockaddr_in(4999, INADDR_LOOPBACK)) ? \"REACHED\\n\" : \"tcp: $!\\n\"; \
                socket(my $u, PF_UNIX, SOCK_STREAM, 0) or die; \
                print connect($u, sockaddr_un(\"\\0karta-victim\")) ? \"REACHED\\n\" : \"unix: $!\\n\"; \
                print \"tried\\n\";";
    let output = attack(driver, world, &perl(text)).await;
    assert!(output.ends_with("tried\n") && !output.contains("REACHED"), "{output}");
}

pub(super) async fn reach_the_network(driver: &dyn Driver, world: &World) {
    // Addresses that lead nowhere even where they can be reached: of documentation, of a cloud's own service, of a private range.
    let text = "use Socket; \
                for my $host (\"192.0.2.1\", \"169.254.169.254\", \"10.255.255.1\", \"255.255.255.255\") { \
                    for my $kind (SOCK_STREAM, SOCK_DGRAM) { \
                        socket(my $s, PF_INET, $kind, 0) or die; \
                        print connect($s, sockaddr_in(53, inet_aton($host))) ? \"REACHED $host\\n\" : \"$host: $!\\n\"; \
                    } \
                } \
                print defined gethostbyname(\"name.invalid\") ? \"RESOLVED\\n\" : \"no name\\n\"; \
                open(my $r, \"<\", \"/proc/net/route\"); my @r = <$r>; print \"routes \", scalar(@r) - 1, \"\\n\"; \
                print \"tried\\n\";";
    let output = attack(driver, world, &perl(text)).await;
    assert!(output.ends_with("tried\n"), "{output}");
    assert!(!output.contains("REACHED") && !output.contains("RESOLVED"), "{output}");
    assert_eq!(output.matches("Network is unreachable").count(), 8, "{output}");
    assert!(output.contains("routes 0\n"), "{output}");
}

pub(super) async fn open_raw_sockets(driver: &dyn Driver, world: &World) {
    let socket = libc::SYS_socket;
    refused(
        driver,
        world,
        &[
            ("raw", socket, "2, 3, 1"),
            ("raw-all", socket, "2, 3, 255"),
            ("raw6", socket, "10, 3, 58"),
            ("packet", socket, "17, 3, 768"),
            ("packet-datagram", socket, "17, 2, 768"),
            ("ping", socket, "2, 2, 1"),
            ("netfilter", socket, "16, 3, 12"),
            ("audit", socket, "16, 3, 9"),
            ("vsock", socket, "40, 1, 0"),
            ("crypto", socket, "38, 5, 0"),
            ("bluetooth", socket, "31, 3, 0"),
            ("express", socket, "44, 3, 0"),
        ],
    )
    .await;
    let sandbox = acquire(driver, &world.spec(1, "a")).await;
    let ordinary = perl("use Socket; socket(my $s, PF_INET, SOCK_STREAM, 0) or die; print \"fine\\n\";");
    assert_eq!(said(&*sandbox, &ordinary).await.0, "fine\n");
}
