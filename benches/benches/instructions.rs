//! Instructions of the hot pieces, counted by valgrind: the same on a busy machine as on a quiet one.
//!
//! This program starts itself under `valgrind --tool=callgrind` twice a piece, with [`FEW`] and with [`MANY`] frames; the
//! difference is what the frames in between cost, without start-up and warm-up. Not a criterion bench: there is no spread.
//! Where there is no valgrind it says SKIPPED. Valgrind has no AVX-512 and shows the program an older processor, so code that
//! chooses by processor (CRC, copies) may take another way than it does for real: compare commits, not machines.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "the table is what it is for")]

use postanalytics_benches::RECORDS;
use postanalytics_benches::pieces::pieces;
use std::process::Command;

const FEW: u64 = 4_000;
const MANY: u64 = 6_000;

fn main() -> Result<(), String> {
    let arguments: Vec<String> = std::env::args().collect();
    // Set only by the runs under valgrind; whatever cargo passes besides means nothing here.
    if let [_, flag, name, frames] = arguments.as_slice()
        && flag == "--piece"
    {
        return run(name, frames.parse().map_err(|error| format!("{frames}: {error}"))?);
    }
    if let Err(error) = Command::new("valgrind").arg("--version").output() {
        println!("SKIPPED instructions: valgrind cannot be started ({error}); install it (Debian: apt-get install valgrind)");
        return Ok(());
    }
    println!("{:<36} {:>14} {:>16}", "piece", "a frame", "a record");
    for piece in pieces() {
        let (few, many) = (counted(piece.name, FEW)?, counted(piece.name, MANY)?);
        let frame = many.checked_sub(few).ok_or_else(|| format!("{}: more frames took fewer instructions", piece.name))?;
        let frame = frame as f64 / (MANY - FEW) as f64;
        println!("{:<36} {frame:>14.0} {:>16.1}", piece.name, frame / f64::from(RECORDS));
    }
    Ok(())
}

/// Handles so many frames with a piece.
fn run(name: &str, frames: u64) -> Result<(), String> {
    let mut piece = pieces().into_iter().find(|piece| piece.name == name).ok_or_else(|| format!("there is no piece {name}"))?;
    for _ in 0..frames {
        if (piece.run)() != RECORDS {
            return Err(format!("{name} did not handle a frame"));
        }
    }
    Ok(())
}

/// Instructions of a whole run, by callgrind's own sum.
fn counted(name: &str, frames: u64) -> Result<u64, String> {
    let program = std::env::current_exe().map_err(|error| format!("where am I? {error}"))?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args(["--piece", name, &frames.to_string()])
        .output()
        .map_err(|error| format!("valgrind: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let sum = said.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok());
    match sum {
        Some(sum) if output.status.success() => Ok(sum),
        _ => Err(format!("{name} under valgrind ended with {}: {said}", output.status)),
    }
}
