//! The limit on open files, of which every connection is one: to go as far as it does, and to say so when it is reached.

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises this process's limit as far as it goes. The usual 1,024 are too few for `--connections` that a server takes.
pub fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    // If it is refused, [`used_up`] tells the limit that there is.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// If the error says that no file can be opened any more: that error, the limit and the remedy. It is known by its text, for a
/// client tells no more of its last error.
pub(crate) fn used_up(error: &str) -> Option<String> {
    let is = |errno: Errno| error.contains(&std::io::Error::from(errno).to_string());
    if is(Errno::MFILE) {
        let limit = getrlimit(Resource::Nofile).current.map_or_else(|| "any number of".to_owned(), |limit| limit.to_string());
        Some(format!(
            "{error}\n\
             loadgen itself may have {limit} files open (RLIMIT_NOFILE), and each of the --connections takes one for every shard and up to \
             two more: raise the limit with `ulimit -n` (LimitNOFILE= in a systemd unit), or give fewer --connections"
        ))
    } else if is(Errno::NFILE) {
        let limit = std::fs::read_to_string("/proc/sys/fs/file-max");
        Some(format!(
            "{error}\n\
             all processes of this machine together may have {} files open (sysctl fs.file-max): raise that, or end what has so many",
            limit.as_deref().map_or("only so many", str::trim)
        ))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_limit_was_reached_is_told_with_its_value() {
        let told = |errno: Errno| used_up(&format!("cannot make a socket: {}", std::io::Error::from(errno)));
        let own = getrlimit(Resource::Nofile).current.expect("a limit").to_string();
        let text = told(Errno::MFILE).expect("it is one");
        assert!(text.contains("cannot make a socket") && text.contains(&own) && text.contains("`ulimit -n`"), "{text}");
        let text = told(Errno::NFILE).expect("it is one");
        assert!(text.contains("fs.file-max") && !text.contains("ulimit"), "{text}");
        assert_eq!(told(Errno::CONNREFUSED), None);
    }
}
