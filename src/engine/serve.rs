//! The process that is ClickHouse.

use std::io::PipeReader;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use tokio_util::sync::CancellationToken;

use super::{Error, FolderLock, START, config, library::Library};

/// ClickHouse measures its own stack and wants as much as a main thread has; only what is touched is ever used.
const STACK: usize = 64 * 1_024 * 1_024;

/// How often it is made sure that the engine still works.
const ALIVE: std::time::Duration = std::time::Duration::from_secs(2);

/// Serves ClickHouse's HTTP interface until `stop`. Prints `listening on http://ADDRESS` when it answers.
///
/// # Errors
/// When the folder, the address or the library can't be used, or the engine fails.
pub async fn serve(library: &Path, folder: &Path, listen: SocketAddr, stop: CancellationToken) -> Result<(), Error> {
    let _lock = FolderLock::take(folder)?;
    let refused = |why| Error::Folder { folder: folder.to_owned(), why };
    let folder = folder.canonicalize().map_err(refused)?;
    let configuration = folder.join("clickhouse.xml");
    std::fs::write(&configuration, config::xml(&folder)).map_err(refused)?;
    let listen = free_address(listen)?;
    let library = Library::load(library)?;

    // ClickHouse serves as long as a query runs: one that reads a pipe which nobody writes to. Closing the pipe ends the
    // query, and with it the program, in order; a signal would end it in the middle of what it does.
    let (reader, writer) = std::io::pipe().map_err(|why| Error::Engine(format!("can't be given a pipe: {why}")))?;
    let arguments = arguments(&folder, &configuration, listen, &reader);
    let (ended, mut end) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("clickhouse".to_owned())
        .stack_size(STACK)
        .spawn(move || ended.send(library.run(&arguments)))
        .map_err(|why| Error::Engine(format!("can't be given a thread: {why}")))?;

    let work = async {
        answers(listen, &folder).await?;
        println!("listening on http://{listen}");
        outlive(listen).await
    };
    let early = tokio::select! {
        () = stop.cancelled() => Ok(()),
        failed = work => failed,
        result = &mut end => return Err(early_end(result.unwrap_or(Ok(())))),
    };
    drop(writer);
    let ended = end.await.unwrap_or(Ok(()));
    drop(reader);
    early.and(ended)
}

fn arguments(folder: &Path, configuration: &Path, listen: SocketAddr, reader: &PipeReader) -> Vec<String> {
    vec![
        "clickhouse".to_owned(),
        format!("--path={}", folder.display()),
        format!("--config-file={}", configuration.display()),
        format!("--http-port={}", listen.port()),
        format!("--listen_host={}", listen.ip()),
        format!("--query=SYSTEM START LISTEN HTTP; SELECT * FROM file('/dev/fd/{}', LineAsString) FORMAT Null", reader.as_raw_fd()),
    ]
}

/// Checks that the address is free: the engine says nothing when it is not. Port 0 becomes a free one below those that
/// the system gives to outgoing connections: one of these could take it between a crash and the restart.
fn free_address(listen: SocketAddr) -> Result<SocketAddr, Error> {
    let probe = |address| TcpListener::bind(address).and_then(|probe| probe.local_addr());
    let below = || SocketAddr::new(listen.ip(), 20_000 + (uuid::Uuid::new_v4().as_u128() % 12_000) as u16);
    let found = match listen.port() {
        0 => (0..16).find_map(|_| probe(below()).ok()).map_or_else(|| probe(listen), Ok),
        _ => probe(listen),
    };
    found.map_err(|why| Error::Listen { address: listen, why })
}

/// Ends the program when the engine can't go on: embedded, it answers everything with "shutting down due to a fatal error"
/// after a crash (seen when a client leaves in the middle of an answer), and never ends by itself.
async fn outlive(listen: SocketAddr) -> Result<(), Error> {
    let client = clickhouse::Client::default().with_url(format!("http://{}", reachable(listen)));
    loop {
        tokio::time::sleep(ALIVE).await;
        if let Err(why) = client.query("SELECT 1").fetch_one::<u8>().await
            && why.to_string().contains("(ABORTED)")
        {
            tracing::error!("ClickHouse has crashed, ending: {why}");
            // In order is not possible: its threads wait for one that is gone.
            std::process::abort();
        }
    }
}

fn reachable(listen: SocketAddr) -> SocketAddr {
    match listen.ip() {
        ip if !ip.is_unspecified() => listen,
        IpAddr::V4(_) => SocketAddr::from(([127, 0, 0, 1], listen.port())),
        IpAddr::V6(_) => SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, listen.port())),
    }
}

/// Waits until the engine answers at the address, and that it is this one: another may have taken the port in between.
async fn answers(listen: SocketAddr, folder: &Path) -> Result<(), Error> {
    let client = clickhouse::Client::default().with_url(format!("http://{}", reachable(listen)));
    let began = Instant::now();
    let path = loop {
        let asked = client.query("SELECT path FROM system.disks WHERE name = 'default'").fetch_one::<String>();
        match tokio::time::timeout(START, asked).await {
            Ok(Ok(path)) => break PathBuf::from(path),
            _ if began.elapsed() < START => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
            Ok(Err(why)) => return Err(Error::Engine(format!("does not answer on {listen}: {why}"))),
            Err(_) => return Err(Error::Engine(format!("does not answer on {listen}"))),
        }
    };
    if path.components().eq(folder.components()) {
        Ok(())
    } else {
        Err(Error::Engine(format!("can't listen on {listen}: another ClickHouse took it just now")))
    }
}

fn early_end(result: Result<(), Error>) -> Error {
    result.err().unwrap_or_else(|| Error::Engine("ended by itself; its words, if any, are above and in clickhouse.log".to_owned()))
}
