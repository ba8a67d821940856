//! The little of NGINX that the rest uses, made handy.

use ngx::ffi;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A level of the error log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Level {
    Emergency = ffi::NGX_LOG_EMERG as usize,
    Error = ffi::NGX_LOG_ERR as usize,
    Warn = ffi::NGX_LOG_WARN as usize,
    Notice = ffi::NGX_LOG_NOTICE as usize,
}

/// Writes a line to the error log of this process. On the thread of NGINX only: its logger keeps state for syslog.
pub fn log(level: Level, line: &str) {
    // SAFETY: NGINX has a cycle with a log from before it loads modules until it ends.
    unsafe { log_to((*ffi::ngx_cycle).log, level, line) }
}

/// Writes a line to a log.
///
/// # Safety
/// `log` is a log of NGINX that exists.
pub unsafe fn log_to(log: *mut ffi::ngx_log_t, level: Level, line: &str) {
    let level = level as usize;
    // SAFETY: the caller's word; `%*s` takes a length and a pointer.
    unsafe {
        if level <= (*log).log_level {
            ffi::ngx_log_error_core(level, log, 0, c"%*s".as_ptr(), line.len(), line.as_ptr());
        }
    }
}

/// The bytes of a string, which live as long as NGINX keeps them: here, as long as what the string is borrowed from.
pub fn bytes(string: &ffi::ngx_str_t) -> &[u8] {
    if string.data.is_null() || string.len == 0 {
        return b"";
    }
    // SAFETY: a string of NGINX is so many bytes from there on.
    unsafe { std::slice::from_raw_parts(string.data, string.len) }
}

/// The string as text.
pub fn text(string: &ffi::ngx_str_t) -> String {
    String::from_utf8_lossy(bytes(string)).into_owned()
}

/// Runs what NGINX calls. A panic must not unwind into C: it is counted, and NGINX goes on with `otherwise`.
pub fn guard<T>(otherwise: T, body: impl FnOnce() -> T) -> T {
    // Whatever a panic has left half done is a request's, or a worker's scratch that the next request clears.
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|_| {
        crate::worker::count_panic();
        otherwise
    })
}

/// The address and port of a socket, if it is an IP socket.
///
/// # Safety
/// `address` is null or a socket address of its family's length.
pub unsafe fn address(address: *const ffi::sockaddr) -> Option<(IpAddr, u16)> {
    // SAFETY: the caller's word: the family says what the rest is. Fields are read as bytes lie, whatever their alignment.
    unsafe {
        match u32::from(address.as_ref()?.sa_family) {
            ffi::AF_INET => {
                let address = address.cast::<ffi::sockaddr_in>().read_unaligned();
                Some((Ipv4Addr::from(address.sin_addr.s_addr.to_ne_bytes()).into(), u16::from_be(address.sin_port)))
            }
            ffi::AF_INET6 => {
                let address = address.cast::<ffi::sockaddr_in6>().read_unaligned();
                let ip = Ipv6Addr::from(address.sin6_addr.__in6_u.__u6_addr8);
                Some((ip.to_canonical(), u16::from_be(address.sin6_port)))
            }
            _ => None,
        }
    }
}

/// Whether there is a process of this pid.
pub fn lives(pid: u32) -> bool {
    // SAFETY: signal 0 only asks.
    let answer = unsafe { ffi::kill(pid as i32, 0) };
    answer == 0 || ffi::ngx_errno() as u32 != ffi::ESRCH
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_ends_at_the_guard() {
        assert_eq!(guard(7, || 8), 8);
        let nothing: [u8; 0] = [];
        let at = std::hint::black_box(1);
        assert_eq!(guard(7, || nothing[at].into()), 7, "NGINX goes on with the other value");
    }
}
