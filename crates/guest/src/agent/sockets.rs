//! Connections: into the sandbox, to a port that a program listens on, and out of it, from programs to the services.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;

use karta_guest::proto::frame::Kind;
use karta_guest::proto::message::Accepted;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::core::{Agent, failure};
use super::stream::{Stream, non_blocking};

impl Agent {
    pub(super) fn connect(&mut self, id: u32, port: u16) {
        let made = || -> io::Result<(OwnedFd, bool)> {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
            let _ = rustix::net::sockopt::set_tcp_nodelay(&socket, true);
            match rustix::net::connect(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)) {
                Ok(()) => Ok((socket, false)),
                Err(Errno::INPROGRESS) => Ok((socket, true)),
                Err(error) => Err(error.into()),
            }
        };
        match made() {
            Ok((socket, connecting)) => {
                let mut stream = Stream::socket(socket);
                stream.connecting = connecting;
                self.streams.insert(id, stream);
                if !connecting {
                    self.answer(id, Ok(Vec::new()));
                }
            }
            Err(error) => self.answer(id, Err(failure(&error, "connecting"))),
        }
    }

    pub(super) fn accept(&mut self, index: usize) {
        let Some((port, listener)) = self.listeners.get(index) else { return };
        let Ok(socket) = rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
        else {
            return;
        };
        let _ = rustix::net::sockopt::set_tcp_nodelay(&socket, true);
        let id = self.guest_next;
        // A machine that has seen two thousand million connections is started anew.
        let Some(next) = id.checked_add(2) else { return };
        self.guest_next = next;
        let opened = Accepted { port: *port }.encode();
        let mut stream = Stream::socket(socket);
        stream.accepted = true;
        self.streams.insert(id, stream);
        self.channel.send(Kind::Open, id, &opened);
    }

    /// Makes the services' listeners.
    pub(super) fn listen(&mut self, address: Ipv4Addr, ports: &[u16]) -> io::Result<()> {
        for port in ports {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
            rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
            rustix::net::bind(&socket, &SocketAddrV4::new(address, *port))?;
            rustix::net::listen(&socket, 128)?;
            non_blocking(&socket)?;
            self.listeners.push((*port, socket));
        }
        Ok(())
    }
}
