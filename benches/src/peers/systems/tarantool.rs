//! Tarantool 2.6: a memtx space with a TREE primary key, with or without an index by source; a stored procedure takes a batch,
//! evicts the oldest and counts per source (`tarantool.lua`); no write-ahead log; IPROTO, pipelined.

use super::{ReadBack, Start};
use crate::peers::connection::{Connection, connect as connect_socket};
use crate::peers::install::Programs;
use crate::peers::msgpack::{Reader, put_array, put_map, put_str, put_uint};
use crate::peers::plan::{Plan, Workload};
use crate::peers::records::{Record, Row};
use crate::peers::replies::{Partial, Replies};
use anyhow::{Context, Result, ensure};
use postanalytics_protocol::FrameHeader;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;

const LUA: &str = include_str!("tarantool.lua");
const GREETING_BYTES: usize = 128;
/// Rows of one answer when reading back.
const PAGE_ROWS: u64 = 1_000;
/// Fields of a tuple: the key and the 14 of a record.
const TUPLE_FIELDS: usize = 15;

// Numbers of IPROTO.
const REQUEST_TYPE: u64 = 0x00;
const SYNC: u64 = 0x01;
const SPACE_ID: u64 = 0x10;
const INDEX_ID: u64 = 0x11;
const LIMIT: u64 = 0x12;
const OFFSET: u64 = 0x13;
const ITERATOR: u64 = 0x14;
const KEY: u64 = 0x20;
const TUPLE: u64 = 0x21;
const FUNCTION_NAME: u64 = 0x22;
const DATA: u64 = 0x30;
const TYPE_SELECT: u64 = 1;
const TYPE_CALL: u64 = 10;
const ITERATOR_GE: u64 = 5;

pub(super) fn command(at: &Start<'_>, programs: &Programs) -> Result<Command> {
    let script = at.folder.join("peers.lua");
    std::fs::write(&script, LUA)?;
    let mut command = Command::new(programs.tarantool()?);
    command.arg(script).arg(at.address.port().to_string()).arg(at.plan.rows.to_string()).arg(at.folder);
    command.arg(if at.workload == Workload::BatchedNoindex { "plain" } else { "indexed" });
    command.stderr(std::fs::File::create(at.folder.join("stderr.log"))?);
    Ok(command)
}

pub(super) fn connect(address: SocketAddr, plan: &Plan) -> Result<Connection> {
    let mut stream = connect_socket(address, &plan.congestion)?;
    stream.read_exact(&mut [0; GREETING_BYTES]).context("Tarantool's greeting did not come")?;
    Connection::new(stream, Replies::Iproto(Partial::default()), 0)
}

/// A call of the procedure with these records.
pub(super) fn encode(records: &[Record], out: &mut Vec<u8>) -> Result<Option<FrameHeader>> {
    let mut body = Vec::new();
    put_map(&mut body, 2);
    put_uint(&mut body, FUNCTION_NAME);
    put_str(&mut body, b"store");
    put_uint(&mut body, TUPLE);
    put_array(&mut body, 1);
    put_array(&mut body, records.len());
    for record in records {
        put_str(&mut body, &tuple(&record.row()));
    }
    request(TYPE_CALL, &body, out);
    Ok(None)
}

fn tuple(row: &Row<'_>) -> Vec<u8> {
    let mut tuple = Vec::with_capacity(512);
    put_array(&mut tuple, TUPLE_FIELDS);
    // Always five bytes, for the procedure writes the key there.
    tuple.extend([0xce, 0, 0, 0, 0]);
    put_str(&mut tuple, row.request_id);
    put_str(&mut tuple, row.client_ip);
    for number in [row.event_us, row.status, row.method, row.response_us] {
        put_uint(&mut tuple, number);
    }
    row.texts.iter().for_each(|text| put_str(&mut tuple, text));
    put_str(&mut tuple, row.rest);
    tuple
}

fn request(kind: u64, body: &[u8], out: &mut Vec<u8>) {
    let mut header = Vec::new();
    put_map(&mut header, 2);
    put_uint(&mut header, REQUEST_TYPE);
    put_uint(&mut header, kind);
    put_uint(&mut header, SYNC);
    put_uint(&mut header, 1);
    out.push(0xce);
    out.extend(((header.len() + body.len()) as u32).to_be_bytes());
    out.extend(header);
    out.extend_from_slice(body);
}

/// Asks and returns what stands under DATA.
fn ask(stream: &mut TcpStream, kind: u64, body: &[u8]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    request(kind, body, &mut bytes);
    stream.write_all(&bytes)?;
    let mut length = [0; 5];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; u32::from_be_bytes([length[1], length[2], length[3], length[4]]) as usize];
    stream.read_exact(&mut answer)?;
    let mut reader = Reader::new(&answer);
    let mut code = 0;
    for _ in 0..reader.map()? {
        let (key, value) = (reader.uint()?, reader.uint()?);
        code = if key == REQUEST_TYPE { value } else { code };
    }
    ensure!(code == 0, "Tarantool refused: {}", String::from_utf8_lossy(&answer));
    ensure!(reader.map()? == 1 && reader.uint()? == DATA, "Tarantool's answer has no data");
    Ok(reader.left().to_vec())
}

pub(super) fn read_back(address: SocketAddr) -> Result<ReadBack> {
    let mut stream = TcpStream::connect(address)?;
    stream.read_exact(&mut [0; GREETING_BYTES])?;
    let mut call = Vec::new();
    put_map(&mut call, 2);
    put_uint(&mut call, FUNCTION_NAME);
    put_str(&mut call, b"totals");
    put_uint(&mut call, TUPLE);
    put_array(&mut call, 0);
    let answer = ask(&mut stream, TYPE_CALL, &call)?;
    let mut reader = Reader::new(&answer);
    ensure!(reader.array()? == 3, "totals() returns three numbers");
    let (space, _sources, taken) = (reader.uint()?, reader.uint()?, reader.uint()?);
    let mut read = ReadBack { taken, ..ReadBack::default() };
    let mut from = 0;
    loop {
        let mut select = Vec::new();
        put_map(&mut select, 6);
        for (key, value) in [(SPACE_ID, space), (INDEX_ID, 0), (LIMIT, PAGE_ROWS), (OFFSET, 0), (ITERATOR, ITERATOR_GE)] {
            put_uint(&mut select, key);
            put_uint(&mut select, value);
        }
        put_uint(&mut select, KEY);
        put_array(&mut select, 1);
        put_uint(&mut select, from);
        let answer = ask(&mut stream, TYPE_SELECT, &select)?;
        let mut reader = Reader::new(&answer);
        let rows = reader.array()?;
        for _ in 0..rows {
            from = row(&mut reader, &mut read)? + 1;
        }
        if rows < PAGE_ROWS {
            return Ok(read);
        }
    }
}

/// Reads a tuple and returns its key.
fn row(reader: &mut Reader<'_>, read: &mut ReadBack) -> Result<u64> {
    ensure!(reader.array()? == TUPLE_FIELDS as u64, "a tuple has {TUPLE_FIELDS} fields");
    let key = reader.uint()?;
    let (request_id, client_ip) = (reader.str()?, reader.str()?);
    let (event_us, status, method, response_us) = (reader.uint()?, reader.uint()?, reader.uint()?, reader.uint()?);
    let mut texts = [&b""[..]; 7];
    for text in &mut texts {
        *text = reader.str()?;
    }
    let row = Row { request_id, client_ip, event_us, status, method, response_us, texts, rest: reader.str()? };
    read.stored.add(row.hash());
    Ok(key)
}
