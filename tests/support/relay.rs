//! A way to a port on which a connection always ends in order.
//!
//! The embedded engine lacks the handler of errors that ClickHouse's server has: it ends when a peer resets a connection, as a shard does
//! when it gives up a statement of which the other's answer is on its way. Here that end is an end of stream, as of a peer that has read all.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;

use super::engine::free_port;

/// Starts one to a port of this machine, and says its own. It ends with the process of the tests.
pub fn relay(to: u16) -> u16 {
    let listener = loop {
        // Somebody may take it in between.
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", free_port())) {
            break listener;
        }
    };
    let port = listener.local_addr().expect("it is bound").port();
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            // A port that nobody listens on: the client's connection ends.
            let Ok(server) = TcpStream::connect(("127.0.0.1", to)) else { continue };
            let (Ok(client_reads), Ok(server_reads)) = (client.try_clone(), server.try_clone()) else { continue };
            thread::spawn(move || pass(client_reads, server));
            thread::spawn(move || pass(server_reads, client));
        }
    });
    port
}

/// Passes on what comes until it ends, however it does. What `to` doesn't take any more is read nonetheless: a connection that is closed
/// with something unread is reset.
fn pass(mut from: TcpStream, mut to: TcpStream) {
    let _ = to.set_nodelay(true);
    let mut piece = vec![0; 64 * 1_024];
    let mut is_taken = true;
    while let Ok(count @ 1..) = from.read(&mut piece) {
        is_taken = is_taken && to.write_all(&piece[..count]).is_ok();
    }
    let _ = to.shutdown(Shutdown::Write);
}
