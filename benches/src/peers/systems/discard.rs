//! Receive and discard: the least that a server can do on this machine. One thread, level-triggered epoll, one large buffer.
//! On its first port it never answers: what that takes is the limit. On its second it answers each read with the bytes read so
//! far on that connection, so that there is a latency to measure.

use super::Start;
use crate::peers::connection::{Connection, connect as connect_socket};
use crate::peers::plan::Plan;
use crate::peers::replies::{Partial, Replies};
use anyhow::{Context, Result};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;

/// The hidden subcommand that runs the server.
pub const SUBCOMMAND: &str = "discard-server";
const BUFFER_BYTES: usize = 256 << 10;
const EVENTS: usize = 256;
const BACKLOG: i32 = 4096;

pub(super) fn command(at: &Start<'_>) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(SUBCOMMAND).args([at.address.to_string(), at.other.to_string(), at.plan.congestion.clone()]);
    Ok(command)
}

/// Connects to the silent port, or to the one that answers.
pub fn connect(address: SocketAddr, plan: &Plan, answers: bool) -> Result<Connection> {
    let replies = if answers { Replies::Count(Partial::default()) } else { Replies::Silent };
    Connection::new(connect_socket(address, &plan.congestion)?, replies, 0)
}

struct Peer {
    stream: TcpStream,
    answers: bool,
    read: u64,
}

/// Runs the server until it is killed.
pub fn serve(silent: SocketAddr, answering: SocketAddr, congestion: &str) -> Result<()> {
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    let listeners = [listen(silent, congestion)?, listen(answering, congestion)?];
    for (number, listener) in listeners.iter().enumerate() {
        epoll::add(&epoll, listener, EventData::new_u64(number as u64), EventFlags::IN)?;
    }
    let (mut peers, mut next) = (HashMap::new(), listeners.len() as u64);
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let mut events: Vec<epoll::Event> = Vec::with_capacity(EVENTS);
        match epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("epoll_wait"),
        }
        for event in events {
            let number = event.data.u64();
            if let Some(listener) = listeners.get(number as usize) {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
                epoll::add(&epoll, &stream, EventData::new_u64(next), EventFlags::IN)?;
                peers.insert(next, Peer { stream, answers: number == 1, read: 0 });
                next += 1;
            } else if let Some(peer) = peers.get_mut(&number)
                && !discard(peer, &mut buffer)
            {
                peers.remove(&number);
            }
        }
    }
}

/// Reads once; `false` when the connection is over.
fn discard(peer: &mut Peer, buffer: &mut [u8]) -> bool {
    match peer.stream.read(buffer) {
        Ok(0) => false,
        Ok(length) => {
            peer.read += length as u64;
            // The generator reads answers all the time, so eight bytes find room.
            !peer.answers || peer.stream.write_all(&peer.read.to_le_bytes()).is_ok()
        }
        Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
    }
}

fn listen(address: SocketAddr, congestion: &str) -> Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_tcp_congestion(congestion.as_bytes())?;
    socket.bind(&address.into()).with_context(|| format!("cannot listen on {address}"))?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
