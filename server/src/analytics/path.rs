//! Paths as detectors see them: normalised, their template, their object id, and what kind of path they are.
//!
//! A path that is normal already, as almost all are, is borrowed; else the work is done in the batch's scratch memory.

use bumpalo::Bump;
use bumpalo::collections::Vec as BumpVec;

/// Scheme and authority dropped, then query and fragment; percent-decoded once; `//` collapsed; dots resolved.
/// Returns the path and the query (what follows the first `?`).
pub fn normalise<'a>(target: &'a [u8], scratch: &'a Bump) -> (&'a [u8], &'a [u8]) {
    let rest = after_authority(target);
    let rest = memchr::memchr(b'#', rest).map_or(rest, |at| &rest[..at]);
    let (path, query) = memchr::memchr(b'?', rest).map_or((rest, &b""[..]), |at| (&rest[..at], &rest[at + 1..]));
    if path.is_empty() {
        return (b"/", query);
    }
    if is_normal(path) {
        return (path, query);
    }
    let mut out = BumpVec::with_capacity_in(path.len() + 1, scratch);
    percent_decode(path, &mut out);
    collapse_slashes(&mut out);
    remove_dots(&mut out);
    if out.is_empty() {
        out.push(b'/');
    }
    (out.into_bump_slice(), query)
}

/// `scheme://authority` dropped, if the target begins with it.
fn after_authority(target: &[u8]) -> &[u8] {
    if target.first().is_none_or(|byte| !byte.is_ascii_alphabetic()) {
        return target;
    }
    let scheme = target.iter().take_while(|&&byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.')).count();
    let Some(rest) = target[scheme..].strip_prefix(b"://") else { return target };
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#')).unwrap_or(rest.len());
    &rest[end..]
}

/// Nothing to decode, no double slash, no segment that begins with a dot.
fn is_normal(path: &[u8]) -> bool {
    path.first() == Some(&b'/')
        && memchr::memchr(b'%', path).is_none()
        && memchr::memchr_iter(b'/', path).all(|at| !matches!(path.get(at + 1), Some(b'/' | b'.')))
}

fn percent_decode(path: &[u8], out: &mut BumpVec<'_, u8>) {
    let mut at = 0;
    while at < path.len() {
        let decoded = match path[at..] {
            [b'%', high, low, ..] => hex(high).zip(hex(low)).map(|(high, low)| high << 4 | low),
            _ => None,
        };
        out.push(decoded.unwrap_or(path[at]));
        at += if decoded.is_some() { 3 } else { 1 };
    }
}

const fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

fn collapse_slashes(path: &mut BumpVec<'_, u8>) {
    let mut kept = 0;
    for at in 0..path.len() {
        if path[at] != b'/' || kept == 0 || path[kept - 1] != b'/' {
            path[kept] = path[at];
            kept += 1;
        }
    }
    path.truncate(kept);
}

/// RFC 3986 5.2.4, in place: what is written is never longer than what was read.
fn remove_dots(path: &mut BumpVec<'_, u8>) {
    let (mut read, mut kept) = (0, 0);
    while read < path.len() {
        let rest = &path[read..];
        if rest.starts_with(b"../") {
            read += 3;
        } else if rest.starts_with(b"./") || rest.starts_with(b"/./") {
            read += 2;
        } else if rest == b"/." {
            path[read + 1] = b'/';
            read += 1;
        } else if rest.starts_with(b"/../") || rest == b"/.." {
            if rest.len() == 3 {
                path[read + 2] = b'/';
                read += 2;
            } else {
                read += 3;
            }
            kept = path[..kept].iter().rposition(|&byte| byte == b'/').unwrap_or(0);
        } else if rest == b"." || rest == b".." {
            read = path.len();
        } else {
            let end = rest.iter().skip(1).position(|&byte| byte == b'/').map_or(rest.len(), |at| at + 1);
            path.copy_within(read..read + end, kept);
            kept += end;
            read += end;
        }
    }
    path.truncate(kept);
}

/// The template of a path and its object id: the last of the segments that were replaced by `{id}`.
pub fn template<'a>(path: &'a [u8], scratch: &'a Bump) -> (&'a [u8], Option<&'a [u8]>) {
    // Such a segment holds a digit, or 16 letters of which all are hexadecimal.
    if !segments(path).any(is_object_id) {
        return (path, None);
    }
    let mut out = BumpVec::with_capacity_in(path.len() + 8, scratch);
    let mut object = None;
    for (position, segment) in segments(path).enumerate() {
        if position > 0 {
            out.push(b'/');
        }
        if is_object_id(segment) {
            out.extend_from_slice_copy(b"{id}");
            object = Some(segment);
        } else {
            out.extend_from_slice_copy(segment);
        }
    }
    (out.into_bump_slice(), object)
}

/// What stands between the slashes.
fn segments(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(path);
    std::iter::from_fn(move || {
        let path = rest?;
        let end = memchr::memchr(b'/', path);
        rest = end.map(|end| &path[end + 1..]);
        Some(&path[..end.unwrap_or(path.len())])
    })
}

/// All digits, a UUID, or 16 and more hexadecimal digits.
fn is_object_id(segment: &[u8]) -> bool {
    let Some(first) = segment.first() else { return false };
    if !first.is_ascii_hexdigit() {
        return false;
    }
    if segment.len() >= 16 && segment.iter().all(u8::is_ascii_hexdigit) {
        return true;
    }
    segment.iter().all(u8::is_ascii_digit) || is_uuid(segment)
}

fn is_uuid(segment: &[u8]) -> bool {
    segment.len() == 36
        && segment.iter().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => *byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

/// Whether an extension, in small letters, is that of a file that does not change.
#[rustfmt::skip]
const fn is_static_extension(extension: &[u8]) -> bool {
    matches!(
        extension,
        b"jpg" | b"jpeg" | b"png" | b"gif" | b"svg" | b"webp" | b"avif" | b"ico" | b"bmp" | b"tif" | b"tiff" | b"woff"
            | b"woff2" | b"ttf" | b"otf" | b"eot" | b"css" | b"js" | b"mjs" | b"map" | b"mp3" | b"mp4" | b"m4a" | b"m4v"
            | b"webm" | b"ogg" | b"ogv" | b"oga" | b"avi" | b"mov" | b"wav" | b"flac" | b"txt" | b"xml" | b"json" | b"html"
            | b"htm"
    )
}

/// Whether the path is one of a file that does not change.
pub fn is_static(path: &[u8]) -> bool {
    let name = last_segment(path);
    let Some(dot) = name.iter().rposition(|&byte| byte == b'.') else { return false };
    let extension = &name[dot + 1..];
    let mut small = [0; 5];
    let Some(small) = small.get_mut(..extension.len()) else { return false };
    small.copy_from_slice(extension);
    small.make_ascii_lowercase();
    is_static_extension(small)
}

/// Whether a path that is not there says nothing about who asked for it; `listed` are the operator's.
pub fn is_weightless(path: &[u8], listed: &[String]) -> bool {
    matches!(path, b"/favicon.ico" | b"/robots.txt" | b"/sitemap.xml")
        || last_segment(path).starts_with(b"apple-touch-icon")
        || path.starts_with(b"/.well-known/")
        || listed.iter().any(|entry| is_path_or_below(path, entry.as_bytes()))
}

/// Whether a path is `listed`, or below it if that ends in `/`.
pub fn is_path_or_below(path: &[u8], listed: &[u8]) -> bool {
    path == listed || listed.ends_with(b"/") && path.starts_with(listed)
}

fn last_segment(path: &[u8]) -> &[u8] {
    memchr::memrchr(b'/', path).map_or(path, |at| &path[at + 1..])
}

/// A number as text, modulo 2⁶⁴: differences of numbers that are near each other come out right whatever their length.
pub fn number_of(text: &[u8]) -> Option<u64> {
    (!text.is_empty() && text.iter().all(u8::is_ascii_digit))
        .then(|| text.iter().fold(0u64, |number, &digit| number.wrapping_mul(10).wrapping_add(u64::from(digit - b'0'))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn normal(target: &str) -> (String, String) {
        let scratch = Bump::new();
        let (path, query) = normalise(target.as_bytes(), &scratch);
        (String::from_utf8_lossy(path).into_owned(), String::from_utf8_lossy(query).into_owned())
    }

    #[test]
    fn paths_are_normalised() {
        for (target, path, query) in [
            ("/a/b?c=d#e", "/a/b", "c=d"),
            ("/a#b?c", "/a", ""),
            ("http://host:80/a/../b?x", "/b", "x"),
            ("http://host", "/", ""),
            ("http://host?x", "/", "x"),
            ("", "/", ""),
            ("/%61/%2e%2E/b%", "/b%", ""),
            ("/%252f", "/%2f", ""),
            ("//a///b/", "/a/b/", ""),
            ("/a/..", "/", ""),
            ("/a/b/..", "/a/", ""),
            ("/a/.", "/a/", ""),
            ("/../../a", "/a", ""),
            ("../../a", "a", ""),
            ("*", "*", ""),
            ("host:443", "host:443", ""),
            ("/...", "/...", ""),
            ("/a/.b", "/a/.b", ""),
            ("/a?u=http://x/y", "/a", "u=http://x/y"),
        ] {
            assert_eq!(normal(target), (path.to_owned(), query.to_owned()), "{target}");
        }
    }

    #[test]
    fn templates_replace_ids() {
        let scratch = Bump::new();
        for (path, expected, object) in [
            ("/a/12/b/34", "/a/{id}/b/{id}", Some("34")),
            ("/a/12b", "/a/12b", None),
            ("/a/0123456789abcdef/", "/a/{id}/", Some("0123456789abcdef")),
            ("/a/0123456789abcde", "/a/0123456789abcde", None),
            ("/6f1ed002-ab5c-4d4e-9e0a-3a1d2b4c5d6E", "/{id}", Some("6f1ed002-ab5c-4d4e-9e0a-3a1d2b4c5d6E")),
        ] {
            let (template, found) = template(path.as_bytes(), &scratch);
            assert_eq!((template, found), (expected.as_bytes(), object.map(str::as_bytes)), "{path}");
        }
    }

    #[test]
    fn kinds_of_paths() {
        assert!(is_static(b"/a/b.PNG") && is_static(b"/.js") && !is_static(b"/a.js/") && !is_static(b"/a.php"));
        let listed = ["/own".to_owned(), "/dir/".to_owned()];
        for (path, expected) in [
            ("/favicon.ico", true),
            ("/blog/favicon.ico", false),
            ("/x/apple-touch-icon-120.png", true),
            ("/.well-known/x", true),
            ("/own", true),
            ("/owner", false),
            ("/dir", false),
            ("/dir/x", true),
        ] {
            assert_eq!(is_weightless(path.as_bytes(), &listed), expected, "{path}");
        }
    }

    proptest! {
        #[test]
        fn normalising_what_has_nothing_to_decode_twice_changes_nothing(target in "[a-z/.]{0,40}") {
            let once = normal(&target).0;
            prop_assert_eq!(normal(&once).0, once);
        }

        #[test]
        fn no_bytes_panic(target in proptest::collection::vec(any::<u8>(), 0..80)) {
            let scratch = Bump::new();
            let (path, _) = normalise(&target, &scratch);
            template(path, &scratch);
            is_static(path);
        }
    }
}
