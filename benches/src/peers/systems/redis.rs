//! Redis 7: XADD with MAXLEN ~ and 14 fields, and INCR of a key per source; no persistence; pipelined.

use super::{ReadBack, Start};
use crate::peers::connection::{Connection, connect as connect_socket};
use crate::peers::install::Programs;
use crate::peers::plan::Plan;
use crate::peers::records::{Corpus, FIELD_NAMES, Record, Row};
use crate::peers::replies::{Partial, Replies};
use anyhow::{Context, Result, bail, ensure};
use postanalytics_protocol::FrameHeader;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;

/// XADD and INCR.
pub(super) const ANSWERS_PER_RECORD: u64 = 2;
const STREAM: &[u8] = b"records";
/// Rows, or counters, of one answer when reading back.
const PAGE_ROWS: usize = 1_000;
const CLIENTS_SPARE: usize = 100;

pub(super) fn command(at: &Start<'_>, programs: &Programs) -> Result<Command> {
    let mut command = Command::new(programs.redis()?);
    command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--daemonize", "no", "--loglevel", "warning"]);
    command.args(["--port", &at.address.port().to_string()]);
    command.args(["--maxclients", &(at.connections + CLIENTS_SPARE).to_string()]);
    command.arg("--dir").arg(at.folder).arg("--logfile").arg(at.folder.join("redis.log"));
    command.stderr(std::fs::File::create(at.folder.join("stderr.log"))?);
    Ok(command)
}

pub(super) fn connect(address: SocketAddr, plan: &Plan) -> Result<Connection> {
    Connection::new(connect_socket(address, &plan.congestion)?, Replies::Resp(Partial::default()), 0)
}

fn put(out: &mut Vec<u8>, argument: &[u8]) {
    out.extend(format!("${}\r\n", argument.len()).into_bytes());
    out.extend_from_slice(argument);
    out.extend(b"\r\n");
}

fn put_command(out: &mut Vec<u8>, arguments: &[&[u8]]) {
    out.extend(format!("*{}\r\n", arguments.len()).into_bytes());
    arguments.iter().for_each(|argument| put(out, argument));
}

fn counter(client_ip: &[u8]) -> Vec<u8> {
    [b"c:", client_ip].concat()
}

/// XADD and INCR for each of these records.
pub(super) fn encode(records: &[Record], rows: u64, out: &mut Vec<u8>) -> Result<Option<FrameHeader>> {
    let rows = rows.to_string();
    for record in records {
        let row = record.row();
        let numbers = [row.event_us, row.status, row.method, row.response_us].map(|number| number.to_string());
        let mut values: Vec<&[u8]> = vec![row.request_id, row.client_ip];
        values.extend(numbers.iter().map(|number| number.as_bytes()));
        values.extend(row.texts);
        values.push(row.rest);
        let mut arguments: Vec<&[u8]> = vec![b"XADD", STREAM, b"MAXLEN", b"~", rows.as_bytes(), b"*"];
        for (name, value) in FIELD_NAMES.iter().zip(values) {
            arguments.extend([name.as_bytes(), value]);
        }
        put_command(out, &arguments);
        put_command(out, &[b"INCR", &counter(row.client_ip)]);
    }
    Ok(None)
}

/// An answer of Redis.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Bytes(Vec<u8>),
    Array(Vec<Answer>),
    Nothing,
}

impl Answer {
    fn read(input: &mut BufReader<TcpStream>) -> Result<Self> {
        let mut line = Vec::new();
        input.read_until(b'\n', &mut line)?;
        let text = std::str::from_utf8(&line)?.trim_end();
        let (kind, text) = text.split_at_checked(1).context("Redis closed the connection")?;
        match kind {
            "-" => bail!("Redis answered {text}"),
            "+" | ":" => Ok(Self::Bytes(text.as_bytes().to_vec())),
            "$" | "*" if text == "-1" => Ok(Self::Nothing),
            "$" => {
                let mut bytes = vec![0; text.parse::<usize>()? + 2];
                input.read_exact(&mut bytes)?;
                bytes.truncate(bytes.len() - 2);
                Ok(Self::Bytes(bytes))
            }
            "*" => Ok(Self::Array((0..text.parse::<usize>()?).map(|_| Self::read(input)).collect::<Result<_>>()?)),
            _ => bail!("Redis answered {kind}{text}"),
        }
    }

    fn array(self) -> Result<Vec<Self>> {
        if let Self::Array(items) = self { Ok(items) } else { bail!("Redis answered {self:?}, not an array") }
    }

    fn bytes(&self) -> Result<&[u8]> {
        if let Self::Bytes(bytes) = self { Ok(bytes) } else { bail!("Redis answered {self:?}, not a string") }
    }

    fn number(&self) -> Result<u64> {
        Ok(std::str::from_utf8(self.bytes()?)?.parse()?)
    }
}

fn ask(input: &mut BufReader<TcpStream>, arguments: &[&[u8]]) -> Result<Answer> {
    let mut bytes = Vec::new();
    put_command(&mut bytes, arguments);
    input.get_mut().write_all(&bytes)?;
    Answer::read(input)
}

pub(super) fn read_back(address: SocketAddr, corpus: &Corpus) -> Result<ReadBack> {
    let mut input = BufReader::new(TcpStream::connect(address)?);
    let mut read = ReadBack::default();
    // A source may have several records, and has one counter.
    let mut counters: Vec<Vec<u8>> = corpus.records.iter().map(|record| counter(record.row().client_ip)).collect();
    counters.sort_unstable();
    counters.dedup();
    for page in counters.chunks(PAGE_ROWS) {
        let arguments: Vec<&[u8]> = [&b"MGET"[..]].into_iter().chain(page.iter().map(Vec::as_slice)).collect();
        for count in ask(&mut input, &arguments)?.array()? {
            read.taken += if count == Answer::Nothing { 0 } else { count.number()? };
        }
    }
    let mut from = b"-".to_vec();
    loop {
        let entries = ask(&mut input, &[b"XRANGE", STREAM, &from, b"+", b"COUNT", PAGE_ROWS.to_string().as_bytes()])?.array()?;
        let count = entries.len();
        for entry in entries {
            let entry = entry.array()?;
            let [id, fields] = &entry[..] else { bail!("an entry of a stream is its id and its fields") };
            from = [b"(", id.bytes()?].concat();
            let Answer::Array(fields) = fields else { bail!("the fields of an entry are an array") };
            read.stored.add(hash(fields)?);
        }
        if count < PAGE_ROWS {
            return Ok(read);
        }
    }
}

fn hash(fields: &[Answer]) -> Result<u64> {
    ensure!(fields.len() == 2 * FIELD_NAMES.len(), "an entry has {} fields", FIELD_NAMES.len());
    for (field, name) in fields.iter().step_by(2).zip(FIELD_NAMES) {
        ensure!(field.bytes()? == name.as_bytes(), "a field is {field:?} instead of {name}");
    }
    let value = |number: usize| &fields[2 * number + 1];
    let mut texts = [&b""[..]; 7];
    for (number, text) in texts.iter_mut().enumerate() {
        *text = value(6 + number).bytes()?;
    }
    let row = Row {
        request_id: value(0).bytes()?,
        client_ip: value(1).bytes()?,
        event_us: value(2).number()?,
        status: value(3).number()?,
        method: value(4).number()?,
        response_us: value(5).number()?,
        texts,
        rest: value(13).bytes()?,
    };
    Ok(row.hash())
}
