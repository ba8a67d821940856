//! The self-test at start: does this kernel, here and now, do what the data plane needs? Probing by doing, not by version.

use super::Kernel;
use super::links::{Completion, Event, LinkEnd, Links};
use super::uring::{Uring, UringConfig};
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;
use thiserror::Error;

/// Lowest kernel that the data plane runs on.
pub const KERNEL_MIN: (u32, u32) = (6, 1);

/// What the self-test found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingFeatures {
    /// Release of the running kernel.
    pub kernel: String,
    /// What the kernel says of itself, in the kernel's names (`IORING_FEAT_…`), of what the data plane leans on.
    pub names: Vec<&'static str>,
}

/// Why io_uring cannot be used; the text states cause, live value and remedy.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum RingError {
    #[error(
        "io_uring is switched off: kernel.io_uring_disabled is {value}. \
         Remedy: `sysctl -w kernel.io_uring_disabled=0` (and a file in /etc/sysctl.d to keep it), or with value 1 \
         run as a member of the group in kernel.io_uring_group"
    )]
    Disabled { value: String },
    #[error(
        "io_uring is forbidden to this process ({error}) although kernel.io_uring_disabled is {value}: a seccomp filter, \
         as containers have by default. Remedy: allow io_uring_setup, io_uring_enter and io_uring_register in the \
         container's seccomp profile (Docker: `--security-opt seccomp=PROFILE.json`)"
    )]
    Seccomp { error: io::Error, value: String },
    #[error(
        "Linux {kernel} is too old: 6.1 or later is needed ({what}: {error}). \
         Remedy: a newer kernel, as Debian 12, Ubuntu 24.04, Amazon Linux 2023 and RHEL 10 have"
    )]
    KernelTooOld { kernel: String, what: &'static str, error: io::Error },
    #[error(
        "io_uring cannot get memory ({error}); the limit on locked memory is {memlock}. \
         Remedy: raise it to 8 MiB or more (`ulimit -l 8192`, LimitMEMLOCK=8M in a systemd unit)"
    )]
    Memory { error: io::Error, memlock: String },
    #[error(
        "io_uring cannot be set up on Linux {kernel}: {error}. Remedy: `ulimit -n` may be too low, or a sandbox may not know the set-up flags of 6.1; see dmesg"
    )]
    Setup { kernel: String, error: io::Error },
    #[error("the io_uring self-test failed on Linux {kernel}: {what}. Remedy: update the kernel, and report this line")]
    SelfTest { kernel: String, what: String },
}

/// Runs the self-test. Call it before anything else uses io_uring.
pub fn probe() -> Result<RingFeatures, RingError> {
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    let ring = Uring::new(UringConfig { buffers: 4, buffer_bytes: 64, links_max: 4 }).map_err(|error| explain(error, &kernel))?;
    let names = ring.features();
    match self_test(ring) {
        Ok(()) => Ok(RingFeatures { kernel, names }),
        Err(what) => Err(RingError::SelfTest { kernel, what }),
    }
}

fn explain(error: io::Error, kernel: &str) -> RingError {
    explain_with(error, kernel, &setting("/proc/sys/kernel/io_uring_disabled"))
}

fn explain_with(error: io::Error, kernel: &str, disabled: &str) -> RingError {
    use rustix::io::Errno;
    let kernel = kernel.to_owned();
    match Errno::from_io_error(&error) {
        Some(Errno::PERM | Errno::ACCESS) if disabled != "0" && !disabled.starts_with('(') => {
            RingError::Disabled { value: disabled.to_owned() }
        }
        Some(Errno::PERM | Errno::ACCESS) => RingError::Seccomp { error, value: disabled.to_owned() },
        Some(Errno::NOSYS) if is_old(&kernel) => RingError::KernelTooOld { kernel, what: "no io_uring", error },
        Some(Errno::NOSYS) => RingError::Seccomp { error, value: disabled.to_owned() },
        Some(Errno::INVAL) if is_old(&kernel) => RingError::KernelTooOld { kernel, what: "set-up flags unknown", error },
        Some(Errno::NOMEM) => RingError::Memory { error, memlock: memlock() },
        _ => RingError::Setup { kernel, error },
    }
}

/// Whether a kernel release is below [`KERNEL_MIN`].
pub(crate) fn is_old(kernel: &str) -> bool {
    let mut parts = kernel.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) < KERNEL_MIN
}

fn setting(path: &str) -> String {
    std::fs::read_to_string(path).map_or_else(|_| "(absent)".to_owned(), |text| text.trim().to_owned())
}

fn memlock() -> String {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock);
    limit.current.map_or_else(|| "unlimited".to_owned(), |bytes| format!("{} KiB", bytes / 1024))
}

/// A multishot receive on four buffers: bytes come, the buffers run out, it is armed again, sends, and ends.
fn self_test(mut ring: Uring) -> Result<(), String> {
    let (near, mut far) = UnixStream::pair().map_err(|error| format!("socket pair: {error}"))?;
    let mut links = Links::default();
    let link = links.open(near.into());
    let mut received = Vec::new();
    far.write_all(&[7; 4 * 64 + 10]).map_err(|error| format!("write: {error}"))?;
    let mut held = Vec::new();
    turns(&mut ring, &mut links, "receive until the buffers run out", |ring, links, event| {
        if let Event::Received { buffer, length, .. } = event {
            received.extend_from_slice(ring.filled(buffer, length).map_err(|error| error.to_string())?);
            held.push(buffer);
        }
        Ok(links.has_starved())
    })?;
    if (received.len(), held.len()) != (4 * 64, 4) {
        return Err(format!("4 buffers of 64 bytes took {} bytes in {} pieces", received.len(), held.len()));
    }
    held.drain(..).for_each(|buffer| ring.give_back(buffer));
    ring.publish_buffers();
    links.rearm_starved(ring.buffers_free());
    turns(&mut ring, &mut links, "receive again after a wait for buffers", |ring, _, event| {
        if let Event::Received { buffer, length, .. } = event {
            received.extend_from_slice(ring.filled(buffer, length).map_err(|error| error.to_string())?);
            ring.give_back(buffer);
        }
        Ok(received.len() == 4 * 64 + 10)
    })?;
    links.send(link, &mut b"answer".to_vec());
    turns(&mut ring, &mut links, "send", |_, _, event| Ok(event == Event::Sent { link }))?;
    links.close(link);
    let mut gone = false;
    turns(&mut ring, &mut links, "end a receive in flight", |_, links, event| {
        gone |= links.take_gone() == Some(link);
        match event {
            Event::Ended { end: LinkEnd::Failed(errno), .. } => Err(format!("the receive failed with errno {errno}")),
            _ => Ok(gone),
        }
    })?;
    if received.iter().any(|byte| *byte != 7) {
        return Err("received bytes are not those sent".to_owned());
    }
    Ok(())
}

/// Turns the ring until `done`, at most two seconds.
fn turns(
    ring: &mut Uring,
    links: &mut Links,
    what: &str,
    mut done: impl FnMut(&mut Uring, &mut Links, Event) -> Result<bool, String>,
) -> Result<(), String> {
    let mut completions: Vec<Completion> = Vec::new();
    for _ in 0..20 {
        let failed = |error: io::Error| format!("{what}: {error}");
        ring.submit(links).map_err(failed)?;
        ring.enter(1, Duration::from_millis(100)).map_err(failed)?;
        ring.completions(&mut completions).map_err(failed)?;
        for completion in completions.drain(..) {
            let event = links.complete(completion);
            if done(ring, links, event)? {
                return Ok(());
            }
        }
    }
    Err(format!("{what}: nothing happened within 2 s"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_passes_or_says_why() {
        match probe() {
            Ok(features) => assert!(!features.kernel.is_empty()),
            Err(
                error @ (RingError::Disabled { .. }
                | RingError::Seccomp { .. }
                | RingError::KernelTooOld { .. }
                | RingError::Memory { .. }),
            ) => eprintln!("SKIPPED: no io_uring here: {error}"),
            // It is there, and does not do what the data plane needs.
            Err(error @ (RingError::Setup { .. } | RingError::SelfTest { .. })) => panic!("{error}"),
        }
    }

    #[test]
    fn a_wait_for_more_than_comes_ends_with_what_there_is() {
        let config = UringConfig { buffers: 2, buffer_bytes: 256, links_max: 4 };
        let Ok(mut ring) = Uring::new(config) else { return eprintln!("SKIPPED: no io_uring here") };
        let (wake, mut other) = std::os::unix::net::UnixStream::pair().expect("a socket pair");
        ring.watch(&wake).expect("watched");
        std::io::Write::write_all(&mut other, &[1]).expect("room");
        let (begun, wait) = (std::time::Instant::now(), Duration::from_millis(20));
        ring.enter(2, wait).expect("a wait that ends is no error");
        assert!(begun.elapsed() >= wait, "it waits for the second one");
        let mut completions = Vec::new();
        ring.completions(&mut completions).expect("one");
        assert_eq!(completions.len(), 1);
    }

    #[test]
    fn errors_state_cause_live_value_and_remedy() {
        let errno = |code: rustix::io::Errno| io::Error::from(code);
        let text = |error, kernel, disabled| explain_with(errno(error), kernel, disabled).to_string();
        let disabled = text(rustix::io::Errno::PERM, "6.8.0", "2");
        assert!(disabled.contains("io_uring_disabled is 2") && disabled.contains("sysctl -w"), "{disabled}");
        assert!(text(rustix::io::Errno::PERM, "6.8.0", "0").contains("seccomp"));
        assert!(text(rustix::io::Errno::NOSYS, "5.4.0", "(absent)").contains("5.4.0 is too old"));
        assert!(text(rustix::io::Errno::NOSYS, "6.8.0", "(absent)").contains("seccomp"));
        assert!(text(rustix::io::Errno::INVAL, "5.15.0-91", "0").contains("5.15.0-91 is too old"));
        let unknown = text(rustix::io::Errno::INVAL, "6.18.0", "0");
        assert!(unknown.contains("6.18.0") && !unknown.contains("too old"), "{unknown}");
        assert!(text(rustix::io::Errno::NOMEM, "6.8.0", "0").contains("locked memory is"));
    }
}
