//! What a shard knows of every session: the highest sequence stored, so that nothing is stored twice or skipped.

use hashbrown::HashMap;

/// Most sessions a shard knows.
pub const SESSIONS_MAX: usize = 65_536;
/// Entries looked at in one sweep.
const SWEEP: usize = 4_096;

/// Node and session, as Hello gave them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionKey {
    /// Id of the node.
    pub node: [u8; 16],
    /// Session drawn by the client.
    pub session: u64,
}

/// One session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// Whose it is.
    pub key: SessionKey,
    /// Highest contiguous sequence stored.
    pub highest: u64,
    /// Link of its connection, if it has one.
    pub link: Option<u32>,
    /// Connections that refer to it, those that were replaced and are still closing included.
    pub connections: u32,
    /// Monotonic time of its last connection's end.
    pub idle_since_us: u64,
    /// Records stored.
    pub records_stored: u64,
    /// Records that came again.
    pub records_duplicate: u64,
    /// Records refused.
    pub records_rejected: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Sessions {
    positions: HashMap<SessionKey, u32, foldhash::fast::RandomState>,
    entries: Vec<Option<Session>>,
    free: Vec<u32>,
    sweep_at: usize,
}

impl Sessions {
    /// Number of sessions.
    pub fn len(&self) -> usize {
        self.positions.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    /// Position of a session, made if it is new. `None`: the table is full.
    pub fn open(&mut self, key: SessionKey) -> Option<u32> {
        if let Some(position) = self.positions.get(&key) {
            return Some(*position);
        }
        if self.positions.len() >= SESSIONS_MAX {
            return None;
        }
        let position = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            self.entries.len() as u32 - 1
        });
        self.entries[position as usize] = Some(Session {
            key,
            highest: 0,
            link: None,
            connections: 0,
            idle_since_us: 0,
            records_stored: 0,
            records_duplicate: 0,
            records_rejected: 0,
        });
        self.positions.insert(key, position);
        Some(position)
    }

    /// A session that a connection refers to (such a session is never forgotten).
    pub fn at(&mut self, position: u32) -> &mut Session {
        match self.entries.get_mut(position as usize) {
            Some(Some(session)) => session,
            _ => unreachable!("sessions with a connection stay"),
        }
    }

    /// A connection of a session has ended. A session that stored nothing and has no other is forgotten: there is nothing to know of it,
    /// and many of them would leave no room for others.
    pub fn leave(&mut self, position: u32, link: u32, now_us: u64) {
        let session = self.at(position);
        session.connections -= 1;
        session.idle_since_us = now_us;
        if session.link == Some(link) {
            session.link = None;
        }
        if session.connections == 0 && session.highest == 0 {
            self.forget(position as usize);
        }
    }

    fn forget(&mut self, position: usize) {
        if let Some(session) = self.entries.get_mut(position).and_then(Option::take) {
            self.positions.remove(&session.key);
            self.free.push(position as u32);
        }
    }

    /// Forgets sessions without connection that ended before `idle_before_us`, a slice of the table at a time.
    pub fn sweep(&mut self, idle_before_us: u64) {
        let end = (self.sweep_at + SWEEP).min(self.entries.len());
        for position in self.sweep_at..end {
            if let Some(session) = self.entries[position]
                && session.connections == 0
                && session.idle_since_us < idle_before_us
            {
                self.forget(position);
            }
        }
        self.sweep_at = if end == self.entries.len() { 0 } else { end };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(session: u64) -> SessionKey {
        SessionKey { node: [1; 16], session }
    }

    #[test]
    fn a_session_that_stored_nothing_leaves_nothing() {
        let mut sessions = Sessions::default();
        let (empty, full) = (sessions.open(key(1)).expect("room"), sessions.open(key(2)).expect("room"));
        sessions.at(empty).connections = 2;
        (sessions.at(full).connections, sessions.at(full).highest) = (1, 1);
        (0..2).for_each(|link| sessions.leave(empty, link, 7));
        sessions.leave(full, 2, 7);
        assert_eq!((sessions.len(), sessions.at(full).idle_since_us), (1, 7));
        assert_eq!(sessions.open(key(3)), Some(empty), "its place is free");
    }

    #[test]
    fn sessions_are_found_again_until_they_idle_too_long() {
        let mut sessions = Sessions::default();
        let first = sessions.open(key(1)).expect("room");
        sessions.at(first).highest = 9;
        let second = sessions.open(key(2)).expect("room");
        sessions.at(second).connections = 1;
        assert_eq!(sessions.open(key(1)), Some(first));
        sessions.at(first).idle_since_us = 100;
        sessions.sweep(100);
        assert_eq!(sessions.len(), 2);
        sessions.sweep(101);
        assert_eq!(sessions.len(), 1, "the connected one stays");
        let again = sessions.open(key(1)).expect("room");
        assert_eq!(sessions.at(again).highest, 0, "forgotten");
    }

    #[test]
    fn the_table_is_bounded() {
        let mut sessions = Sessions::default();
        for session in 0..SESSIONS_MAX as u64 {
            assert!(sessions.open(key(session)).is_some());
        }
        assert_eq!(sessions.open(key(u64::MAX)), None);
        assert!(sessions.open(key(5)).is_some(), "known ones are still found");
    }
}
