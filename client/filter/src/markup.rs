//! Tells the HTML that editors of rich text make from HTML that does something.
//!
//! A list of what is allowed, as sanitisers of HTML have it: elements that format, attributes that format, addresses that load a
//! picture or lead to a page. Whatever is not on it, or is not written as an editor writes it (a value without quotes, an end
//! without its beginning, a `>` outside of an element), is no formatting.

/// Elements that a text of an editor consists of; one of the first kind must be there.
const BLOCKS: [&str; 28] = [
    "p",
    "div",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "ul",
    "ol",
    "li",
    "table",
    "thead",
    "tbody",
    "tfoot",
    "tr",
    "td",
    "th",
    "blockquote",
    "pre",
    "hr",
    "br",
    "figure",
    "figcaption",
    "dl",
    "dt",
    "dd",
    "section",
];
const INLINE: [&str; 27] = [
    "a", "b", "i", "u", "s", "em", "strong", "span", "sub", "sup", "small", "mark", "font", "code", "kbd", "q", "cite", "abbr",
    "img", "del", "ins", "strike", "center", "col", "colgroup", "caption", "wbr",
];
/// Those without an end.
const VOID: [&str; 5] = ["br", "hr", "img", "col", "wbr"];
/// Attributes whose values say nothing but words and measures.
const ATTRIBUTES: [&str; 28] = [
    "class",
    "id",
    "width",
    "height",
    "align",
    "valign",
    "color",
    "bgcolor",
    "size",
    "face",
    "border",
    "cellpadding",
    "cellspacing",
    "colspan",
    "rowspan",
    "target",
    "rel",
    "dir",
    "lang",
    "start",
    "type",
    "role",
    "loading",
    "scope",
    "tabindex",
    "draggable",
    "spellcheck",
    "contenteditable",
];
/// Functions of a style that give a colour or a length.
const STYLE_FUNCTIONS: [&str; 6] = ["rgb", "rgba", "hsl", "hsla", "calc", "var"];
/// Words of a style that load or run something.
const STYLE_WORDS: [&str; 5] = ["expression", "behavio", "binding", "script", "url"];

/// Whether a text is HTML that only formats.
pub(crate) fn is_formatting(text: &[u8]) -> bool {
    let (mut rest, mut open, mut has_block) = (text.trim_ascii(), 0usize, false);
    while let Some(at) = memchr::memchr2(b'<', b'>', rest) {
        let Some(inside) = rest[at..].strip_prefix(b"<") else { return false };
        let (inside, is_end) = inside.strip_prefix(b"/").map_or((inside, false), |inside| (inside, true));
        let (name, inside) = word(inside);
        let is_block = is_one_of(name, &BLOCKS);
        if !is_block && !is_one_of(name, &INLINE) {
            return false;
        }
        has_block |= is_block;
        let after = if is_end { inside.trim_ascii_start().strip_prefix(b">") } else { after_attributes(inside) };
        let Some(after) = after else { return false };
        rest = after;
        if !is_one_of(name, &VOID) {
            let level = if is_end { open.checked_sub(1) } else { open.checked_add(1) };
            let Some(level) = level else { return false };
            open = level;
        }
    }
    has_block
}

/// What follows an element whose attributes only format; `None` if they do not.
fn after_attributes(mut text: &[u8]) -> Option<&[u8]> {
    loop {
        let attribute = text.trim_ascii_start();
        if let Some(after) = attribute.strip_prefix(b">").or_else(|| attribute.strip_prefix(b"/>")) {
            return Some(after);
        }
        if attribute.len() == text.len() {
            return None;
        }
        let (name, rest) = word(attribute);
        let Some(rest) = rest.strip_prefix(b"=") else {
            // Without a value, or an end that is not there.
            if name.is_empty() || !is_one_of(name, &ATTRIBUTES) {
                return None;
            }
            text = rest;
            continue;
        };
        let quote = *rest.first().filter(|byte| matches!(byte, b'"' | b'\''))?;
        let end = memchr::memchr(quote, &rest[1..])?;
        if !is_harmless(name, &rest[1..=end]) {
            return None;
        }
        text = &rest[end + 2..];
    }
}

/// Whether an attribute only formats.
fn is_harmless(name: &[u8], value: &[u8]) -> bool {
    let has_none_of = |bytes: &[u8]| !value.iter().any(|byte| bytes.contains(byte) || *byte < b' ');
    if name.eq_ignore_ascii_case(b"style") {
        is_style(value)
    } else if [&b"href"[..], b"src", b"cite"].iter().any(|known| name.eq_ignore_ascii_case(known)) {
        is_address(value)
    } else if [&b"title"[..], b"alt"].iter().any(|known| name.eq_ignore_ascii_case(known)) {
        has_none_of(b"<>{}`\\$")
    } else {
        let is_data = [&b"data-"[..], b"aria-"].iter().any(|start| name.len() > 5 && name[..5].eq_ignore_ascii_case(start));
        (is_data && !name.eq_ignore_ascii_case(b"data-bind") || is_one_of(name, &ATTRIBUTES)) && has_none_of(b"<>{}`\\$()=")
    }
}

fn is_style(value: &[u8]) -> bool {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b" :;,.#%-+!()\"'".contains(byte);
    let contains = |word: &&str| value.windows(word.len()).any(|window| window.eq_ignore_ascii_case(word.as_bytes()));
    let has_function = |at: usize| {
        let before = &value[..at];
        let name = before.iter().rev().take_while(|byte| byte.is_ascii_alphanumeric()).count();
        is_one_of(&before[at - name..], &STYLE_FUNCTIONS)
    };
    value.iter().all(is_plain) && !STYLE_WORDS.iter().any(contains) && memchr::memchr_iter(b'(', value).all(has_function)
}

/// An address that leads to a page or to a picture: of the web, of a mailbox, of this site, or a picture in base64.
fn is_address(value: &[u8]) -> bool {
    let value = value.trim_ascii();
    if value.iter().any(|byte| *byte <= b' ' || b"<>{}`\\\"'".contains(byte)) {
        return false;
    }
    let starts = |word: &&str| value.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word.as_bytes()));
    if ["http://", "https://", "mailto:", "tel:"].iter().any(starts) {
        return true;
    }
    if ["png", "jpeg", "gif", "webp"].iter().any(|kind| starts(&format!("data:image/{kind};base64,").as_str())) {
        return true;
    }
    // Of this site: no scheme, and no host either.
    let path = value.iter().take_while(|byte| !b"/?#".contains(byte)).count();
    !value[..path].contains(&b':') && !value.starts_with(b"//")
}

/// A name, and what follows it.
fn word(text: &[u8]) -> (&[u8], &[u8]) {
    text.split_at(text.iter().take_while(|byte| byte.is_ascii_alphanumeric() || **byte == b'-').count())
}

fn is_one_of(name: &[u8], names: &[&str]) -> bool {
    names.iter().any(|known| name.eq_ignore_ascii_case(known.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_editors_write_is_formatting() {
        for text in [
            "<p>Hello <b>you</b>,</p>\n<p>see <a href=\"https://a.example/x?y=1\" target=\"_blank\" rel=\"noopener\">this</a></p>",
            "<div style=\"text-align: center; color: rgb(1, 2, 3);\"><img src=\"/media/a.png\" alt=\"A (b)\" width=\"10\" /></div>",
            "<TABLE CLASS='a' border=\"0\"><tr><td STYLE=\"width:1px\" colspan=\"2\">x<br>y</td></tr></TABLE>",
            "Dear all,<br/>call <a href=\"tel:+1-555\">us</a> or <a href='#top'>go up</a>",
            "<p><img src=\"data:image/png;base64,iVBORw0KGgo=\" data-id=\"7\" draggable></p>",
            "<ul><li>one</li><li>two &nbsp; 3 \" 4</li></ul><p>cut of",
        ] {
            assert!(is_formatting(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn what_does_something_is_none() {
        for text in [
            "plain",
            "<b>no block</b>",
            "<img src=\"/a.png\">",
            "<p><script>f()</script></p>",
            "<p onclick=\"f()\">x</p>",
            "<p><img src=\"x\" onerror=\"f()\"></p>",
            "<p><img src=x></p>",
            "<p><a href=\"javascript:f()\">x</a></p>",
            "<p><a href=\" java\tscript:f()\">x</a></p>",
            "<p><a href=\"data:text/html,x\">x</a></p>",
            "<p><img src=\"//a.example/x\"></p>",
            "<p style=\"background:url(x)\">x</p>",
            "<p style=\"width:expression(f())\">x</p>",
            "<p style=\"a:e\\78pression(f())\">x</p>",
            "<p style=\"width:calc(1px);a:f(1)\">x</p>",
            "<p class=\"{{7*7}}\">x</p>",
            "<p data-bind=\"x\">x</p>",
            "<p title=\"`\">x</p>",
            "</p><p>x</p>",
            "\"><p>x</p>",
            "<p>x</p></textarea>",
            "<p>x</p><iframe src=\"https://a.example/\"></iframe>",
            "<p><!-- x --></p>",
            "<p/onclick=f()>x</p>",
            "<p a\"b>x</p>",
            "<p class=\"x",
            "<p",
            "<p class=\"x\"onclick=\"f()\">x</p>",
        ] {
            assert!(!is_formatting(text.as_bytes()), "{text}");
        }
    }
}
