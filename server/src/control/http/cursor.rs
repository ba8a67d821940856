//! Where a search through the stored records goes on, as a text that whoever asks hands back.
//!
//! The text is `code-part-part-…`, a part for each shard: `newest`, `over`, or the place of its next record. The code is a
//! hash with a key of this process. So only places that a search of this process came to are ever looked at: any other
//! offset could be the middle of what a visitor typed in, made up to look like a record, or like one that follows itself.

use crate::shard::messages::Cursor;
use std::hash::BuildHasher;

/// Where a search goes on in one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::control) enum GoOn {
    Newest,
    Older(Cursor),
    Over,
}

/// Writes where a search goes on.
pub(super) fn write(key: &impl BuildHasher, shards: &[GoOn]) -> String {
    let parts = shards.iter().map(|shard| match shard {
        GoOn::Newest => "newest".to_owned(),
        GoOn::Over => "over".to_owned(),
        GoOn::Older(Cursor { slab, generation, offset, records_left }) => {
            format!("{slab:x}.{generation:x}.{offset:x}.{records_left:x}")
        }
    });
    let parts = parts.collect::<Vec<_>>().join("-");
    format!("{:016x}-{parts}", key.hash_one(&parts))
}

/// Reads what [`write`] wrote. The size of a request's head bounds the text.
pub(super) fn read(key: &impl BuildHasher, text: &str, shard_count: usize) -> Result<Vec<GoOn>, String> {
    let wrong = || "cursor must be `next` of an answer of this server since its start: begin again without it".to_owned();
    let (code, parts) = text.split_once('-').ok_or_else(wrong)?;
    if code != format!("{:016x}", key.hash_one(parts)) {
        return Err(wrong());
    }
    let shards: Option<Vec<GoOn>> = parts.split('-').map(go_on).collect();
    shards.filter(|shards| shards.len() == shard_count).ok_or_else(wrong)
}

/// What fuzzing drives: under the right code any parts are read as such or refused, and read the same when written again.
#[cfg(feature = "fuzzing")]
pub(super) fn go_on_with(parts: &str) {
    let key = std::hash::BuildHasherDefault::<std::hash::DefaultHasher>::default();
    let shard_count = parts.split('-').count();
    let _ = read(&key, parts, shard_count);
    if let Ok(shards) = read(&key, &format!("{:016x}-{parts}", key.hash_one(parts)), shard_count) {
        assert_eq!(read(&key, &write(&key, &shards), shard_count), Ok(shards));
    }
}

fn go_on(part: &str) -> Option<GoOn> {
    match part {
        "newest" => return Some(GoOn::Newest),
        "over" => return Some(GoOn::Over),
        _ => {}
    }
    let mut numbers = part.split('.').map(|number| u64::from_str_radix(number, 16).ok());
    let mut next = || numbers.next().flatten();
    let (slab, generation) = (u32::try_from(next()?).ok()?, next()?);
    let (offset, records_left) = (u32::try_from(next()?).ok()?, u32::try_from(next()?).ok()?);
    Some(GoOn::Older(Cursor { slab, generation, offset, records_left }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hash::RandomState;

    #[test]
    fn a_cursor_is_read_back_and_nothing_made_up_is() {
        let key = RandomState::new();
        let place = Cursor { slab: 3, generation: u64::MAX, offset: u32::MAX, records_left: 7 };
        let shards = vec![GoOn::Newest, GoOn::Older(place), GoOn::Over];
        let text = write(&key, &shards);
        assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.')), "{text}");
        assert_eq!(read(&key, &text, 3), Ok(shards));
        let other = text.replacen("3.", "4.", 1);
        for wrong in ["", "-", "newest-over-over", &text[1..], &other] {
            assert!(read(&key, wrong, 3).is_err(), "{wrong}");
        }
        assert!(read(&key, &text, 2).is_err() && read(&RandomState::new(), &text, 3).is_err());
    }
}
