//! Files of access logs, plain, gzip and damaged, through the load generator's reader.

use super::Script;
use flate2::Compression;
use flate2::write::GzEncoder;
use postanalytics_client::access_log::parse_line;
use postanalytics_loadgen::replay::{LINE_BYTES_MAX, LogReader};
use std::io::Write;

/// What was read of a file.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    lines: u64,
    lines_unparsable: u64,
    /// CRC of the addresses, paths and queries.
    crc: u32,
    is_damaged: bool,
}

/// Reading ends whatever a file holds. A text is read line by line as it stands there, and reads the same from a gzip file; no
/// line is longer than the bound. A gzip file that is cut or damaged gives no line more, or an error that names it.
pub fn log_reader(data: &[u8]) {
    let mut script = Script(data);
    let (what, times, at) = (script.u8(), usize::from(script.u8()), usize::from(script.u16()));
    if what % 4 == 0 {
        read(data);
        read(script.0);
        return;
    }
    // Up to 510 times, but rarely, for it is slow: lines can come to be longer than the bound.
    let text = script.0.repeat(1 + if what / 4 == 1 { 2 * times } else { 0 });
    if text.starts_with(&[0x1f, 0x8b]) {
        return;
    }
    if what % 4 == 1 {
        return assert_eq!(read(&text), expected(&text));
    }
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let written = encoder.write_all(&text).and_then(|()| encoder.finish());
    let mut gzip = written.expect("memory takes all");
    match what % 4 {
        2 => assert_eq!(read(&gzip), expected(&text)),
        _ => {
            let at = at % gzip.len();
            if times & 1 == 0 {
                gzip.truncate(at)
            } else {
                gzip[at] ^= times as u8
            }
            let found = read(&gzip);
            assert!(found.is_damaged || at < 10 || times & 1 == 1 || text.is_empty(), "a file that ends early says so");
        }
    }
}

fn read(bytes: &[u8]) -> Found {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(bytes).expect("room on the disk");
    let mut reader = LogReader::new(&[file.path().to_path_buf()]).expect("the file is there");
    let (mut crc, mut given) = (crc32fast::Hasher::new(), 0);
    let is_damaged = loop {
        match reader.next_line() {
            Ok(Some(line)) => {
                let fields = [line.address, line.path, line.query];
                assert!(fields.iter().map(|field| field.len()).sum::<usize>() < LINE_BYTES_MAX);
                fields.into_iter().for_each(|field| crc.update(field));
                given += 1;
            }
            Ok(None) => break false,
            Err(error) => {
                assert!(format!("{error:#}").contains(&*file.path().to_string_lossy()), "{error:#}");
                break true;
            }
        }
    };
    assert_eq!(given + reader.lines_unparsable, reader.lines, "every line is given or counted");
    Found { lines: reader.lines, lines_unparsable: reader.lines_unparsable, crc: crc.finalize(), is_damaged }
}

fn expected(text: &[u8]) -> Found {
    let (mut found, mut crc) = (Found::default(), crc32fast::Hasher::new());
    for line in text.split(|&byte| byte == b'\n') {
        if line[..line.len().min(LINE_BYTES_MAX)].trim_ascii().is_empty() {
            continue;
        }
        found.lines += 1;
        match parse_line(line).filter(|_| line.len() < LINE_BYTES_MAX) {
            Some(parsed) => [parsed.address, parsed.path, parsed.query].into_iter().for_each(|field| crc.update(field)),
            None => found.lines_unparsable += 1,
        }
    }
    found.crc = crc.finalize();
    found
}
