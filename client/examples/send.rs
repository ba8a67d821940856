//! Sends one request to postanalytics and asks whether its sender is listed.
//!
//! `cargo run -p postanalytics-client --example send`, with a server on 127.0.0.1:3313; another address follows behind `--`.

#![allow(clippy::print_stdout, reason = "it is a program")]

use postanalytics_client::{Client, Request};
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3313".to_owned());
    let client = Client::builder().server(server).node_name("example").build()?;
    let visitor: IpAddr = [192, 0, 2, 7].into();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    client.try_send(&Request {
        client_ip: visitor,
        event_us: now.as_micros() as u64,
        status: 404,
        method: 1,
        host: b"shop.example",
        path: b"/.env",
        ..Request::default()
    })?;
    if let Err(error) = client.flush(Duration::from_secs(2)) {
        println!("{error}: {}", client.status().last_error);
    }
    println!("{visitor} denied: {}", client.denylist().contains(visitor));
    println!("{:#?}", client.close(Duration::from_secs(1)));
    Ok(())
}
