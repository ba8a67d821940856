//! Who tries to log in: the name of the user in a body that has a password too.
//!
//! Stuffed credentials are told from a forgotten password by how many users one source tries, so a node has to know whom. The
//! client sends a keyed hash of the name, never the name.

use crate::engine::BodyKind;
use crate::normalise::Decoder;
use crate::points::{self, Json, Part, Role};
use std::ops::ControlFlow;

/// Longer bodies are not read: no form to log in is that long.
const BODY_BYTES_MAX: usize = 16 << 10;
/// Names and values that are looked at, for the same reason.
const PARTS_MAX: usize = 128;
/// What of a longer name tells it from others.
const USER_BYTES_MAX: usize = 256;
/// Fields for the name of a user, by themselves or as the last part of a name (`user[email]`, `session_login`, `j_username`): those of
/// WordPress (`log`), Joomla, Drupal (`name` beside `pass`), Rails, Django, Spring, Keycloak, phpMyAdmin, and of APIs in JSON.
const USER_FIELDS: [&str; 14] = [
    "username",
    "user",
    "login",
    "email",
    "mail",
    "log",
    "userid",
    "uid",
    "uname",
    "account",
    "identifier",
    "loginname",
    "usr",
    "name",
];
/// What the names of fields for passwords contain. The masker hides the values of such fields, a test says.
pub(crate) const PASSWORD_WORDS: [&str; 5] = ["pass", "pwd", "kennwort", "senha", "contrase"];

/// Before which of its parameters a method of XML-RPC has so many others: those of WordPress that take a user and a password.
const XML_RPC_METHODS: [(&str, usize); 7] = [
    ("wp.getusersblogs", 0),
    ("blogger.getusersblogs", 1),
    ("blogger.getuserinfo", 1),
    ("blogger.", 2),
    ("wp.", 1),
    ("metaweblog.", 1),
    ("mt.", 1),
];

/// The user whom a request tries to log in, lower-case; `None` unless its body (a form, in parts or not, JSON, or a call of WordPress's
/// XML-RPC; of several calls in one, the first) has both a name and a password. For requests that change something (POST, PUT): in others a body means nothing.
///
/// ```
/// let user = postanalytics_filter::login_user(b"application/x-www-form-urlencoded", b"log=Anna%40example.org&pwd=1234");
/// assert_eq!(user.as_deref(), Some(&b"anna@example.org"[..]));
/// ```
pub fn login_user(content_type: &[u8], body: &[u8]) -> Option<Vec<u8>> {
    if body.is_empty() || body.len() > BODY_BYTES_MAX {
        return None;
    }
    // WordPress reads it whatever the content type says.
    if body.trim_ascii_start().starts_with(b"<") && memchr::memmem::find(body, b"<methodCall").is_some() {
        return xml_rpc_user(body);
    }
    let kind = BodyKind::of(content_type, body);
    let plus = matches!(kind, BodyKind::Form);
    // The place of its field in the list, and the name.
    let mut user: Option<(usize, Vec<u8>)> = None;
    let (mut has_password, mut parts) = (false, 0);
    let mut decoder = Decoder::default();
    let mut take = |part: Part<'_>| {
        parts += 1;
        if parts > PARTS_MAX {
            return ControlFlow::Break(());
        }
        let field = decoder.decode(part.name, true).to_ascii_lowercase();
        let has = |word: &&str| memchr::memmem::find(&field, word.as_bytes()).is_some();
        if PASSWORD_WORDS.iter().any(has) {
            // An empty one is tried too.
            has_password = true;
        } else if part.role == Role::Value
            && let Some(rank) = rank_of(&field)
            && user.as_ref().is_none_or(|(known, _)| rank < *known)
        {
            let name = decoder.decode(part.value, plus).trim_ascii();
            let name = &name[..name.len().min(USER_BYTES_MAX)];
            if !name.is_empty() {
                user = Some((rank, name.to_ascii_lowercase()));
            }
        }
        ControlFlow::Continue(())
    };
    let _ = match kind {
        BodyKind::Form => points::pairs(body, b'&', &mut take),
        BodyKind::Multipart(boundary) => points::multipart(body, boundary, &mut take),
        BodyKind::Json | BodyKind::JsonOrForm => Json::default().values(body, &mut take).map_continue(|_| ()),
        BodyKind::Xml | BodyKind::Markup | BodyKind::Other => return None,
    };
    user.filter(|_| has_password).map(|(_, name)| name)
}

/// The user of a call by XML-RPC. A call that is made of several has the names of their methods among its values.
fn xml_rpc_user(body: &[u8]) -> Option<Vec<u8>> {
    let leaves: Vec<&[u8]> = XmlLeaves { rest: body, opened: b"" }.take(PARTS_MAX).collect();
    let (at, before) = leaves.iter().enumerate().find_map(|(at, leaf)| {
        let method = leaf.trim_ascii().to_ascii_lowercase();
        let (_, before) = XML_RPC_METHODS.iter().find(|(name, _)| method.starts_with(name.as_bytes()))?;
        Some((at, before))
    })?;
    let [user, _password] = leaves.get(at + 1 + before..at + 3 + before)? else { return None };
    let mut decoder = Decoder::default();
    let name = decoder.decode(user, false).trim_ascii();
    let name = &name[..name.len().min(USER_BYTES_MAX)];
    (!name.is_empty()).then(|| name.to_ascii_lowercase())
}

/// The texts of elements that hold no others, but for names of members; of a text in CDATA what is in it.
struct XmlLeaves<'a> {
    rest: &'a [u8],
    /// The name of the element that was opened last, if nothing was closed since.
    opened: &'a [u8],
}

impl<'a> Iterator for XmlLeaves<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        const CDATA: &[u8] = b"<![CDATA[";
        let mut text: Option<&[u8]> = None;
        loop {
            let start = memchr::memchr(b'<', self.rest)?;
            let (before, tag) = self.rest.split_at(start);
            if let Some(inside) = tag.strip_prefix(CDATA) {
                let end = memchr::memmem::find(inside, b"]]>")?;
                (text, self.rest) = (Some(&inside[..end]), &inside[end + 3..]);
                continue;
            }
            let end = memchr::memchr(b'>', tag)?;
            self.rest = &tag[end + 1..];
            let tag = &tag[1..end];
            if tag.starts_with(b"/") {
                let opened = std::mem::take(&mut self.opened);
                if !opened.is_empty() && opened != b"name" {
                    return Some(text.unwrap_or(before));
                }
            } else if !tag.starts_with(b"!") && !tag.starts_with(b"?") {
                let name = tag.split(|byte| byte.is_ascii_whitespace() || *byte == b'/').next().unwrap_or(tag);
                self.opened = if tag.ends_with(b"/") { b"" } else { name };
                if tag.ends_with(b"/") && name == b"string" {
                    return Some(b"");
                }
                text = None;
            }
        }
    }
}

/// The place of a field in the list, if it is for the name of a user.
fn rank_of(field: &[u8]) -> Option<usize> {
    let field = field.strip_suffix(b"]").unwrap_or(field);
    let last = field.rsplit(|byte| matches!(byte, b'[' | b'.' | b':' | b'_' | b'-')).next().unwrap_or(field);
    USER_FIELDS.iter().position(|name| last == name.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORM: &[u8] = b"application/x-www-form-urlencoded";

    fn of(content_type: &[u8], body: &[u8]) -> Option<String> {
        login_user(content_type, body).map(|user| String::from_utf8(user).expect("text"))
    }

    #[test]
    fn forms_of_common_software() {
        for (body, user) in [
            ("log=admin&pwd=hunter2&wp-submit=Log+In&testcookie=1", "admin"),
            ("username=Anna+B&passwd=x&option=com_login&task=login&return=aW5kZXgucGhw", "anna b"),
            ("utf8=%E2%9C%93&authenticity_token=abc&user%5Bemail%5D=a%40b.org&user%5Bpassword%5D=x&commit=Log+in", "a@b.org"),
            ("user[login]=anna&user[password]=x", "anna"),
            ("j_username=anna&j_password=x", "anna"),
            ("name=anna&pass=x&form_id=user_login_form&op=Log+in", "anna"),
            ("pma_username=root&pma_password=&server=1&token=x", "root"),
            ("password=x&username=after", "after"),
            ("name=Full+Name&email=a%40b.org&password=x", "a@b.org"),
        ] {
            assert_eq!(of(FORM, body.as_bytes()).as_deref(), Some(user), "{body}");
        }
    }

    #[test]
    fn json_and_parts() {
        assert_eq!(of(b"application/json", br#"{"email":"A@b.org","password":"x"}"#).as_deref(), Some("a@b.org"));
        assert_eq!(of(b"application/json", br#"{"user":{"name":"anna","password":"x"}}"#).as_deref(), Some("anna"));
        let parts =
            b"--b\r\nContent-Disposition: form-data; name=\"login\"\r\n\r\nanna\r\n--b\r\nContent-Disposition: form-data; \
                      name=\"password\"\r\n\r\nx\r\n--b--\r\n";
        assert_eq!(of(b"multipart/form-data; boundary=b", parts).as_deref(), Some("anna"));
    }

    #[test]
    fn calls_of_xml_rpc() {
        let call = |method: &str, parameters: &[&str]| {
            let values: String = parameters.iter().map(|value| format!("<param><value>{value}</value></param>")).collect();
            format!(
                "<?xml version=\"1.0\"?>\n<methodCall><methodName>{method}</methodName><params>{values}</params></methodCall>"
            )
        };
        for (body, user) in [
            (call("wp.getUsersBlogs", &["<string>Admin</string>", "<string>x</string>"]), Some("admin")),
            (call("wp.getUsersBlogs", &["anna", ""]), Some("anna")),
            (call("wp.getPosts", &["<int>1</int>", "<string><![CDATA[anna]]></string>", "<string>x</string>"]), Some("anna")),
            (call("metaWeblog.newPost", &["<string/>", "anna", "x", "<struct></struct>"]), Some("anna")),
            (call("blogger.getUserInfo", &["key", "anna", "x"]), Some("anna")),
            (call("blogger.getPost", &["key", "7", "anna", "x"]), Some("anna")),
            (call("wp.getUsersBlogs", &["anna"]), None),
            (call("pingback.ping", &["http://a.example/", "http://b.example/"]), None),
            (call("system.listMethods", &[]), None),
        ] {
            // WordPress asks for no content type.
            for content_type in [b"text/xml".as_slice(), FORM, b""] {
                assert_eq!(of(content_type, body.as_bytes()).as_deref(), user, "{body}");
            }
        }
        let member = |user: &str| {
            format!(
                "<value><struct><member><name>methodName</name><value><string>wp.getUsersBlogs</string></value></member><member>\
                 <name>params</name><value><array><data><value><string>{user}</string></value><value><string>x</string></value></data>\
                 </array></value></member></struct></value>"
            )
        };
        let several = format!("<array><data>{}{}</data></array>", member("anna"), member("bob"));
        assert_eq!(of(b"text/xml", call("system.multicall", &[&several]).as_bytes()).as_deref(), Some("anna"));
        let whole = call("wp.getUsersBlogs", &["<string>anna</string>", "<string>x</string>"]);
        for end in 0..whole.len() {
            let _ = login_user(b"text/xml", &whole.as_bytes()[..end]);
        }
    }

    #[test]
    fn what_is_no_attempt_names_nobody() {
        for body in
            ["", "email=a%40b.org&newsletter=1", "password=x", "user=&password=x", "catalogue=a&compass=b", "a", "<user>x</user>"]
        {
            assert_eq!(of(FORM, body.as_bytes()), None, "{body}");
        }
        let deep = [b"a=b&".repeat(PARTS_MAX), b"user=anna&password=x".to_vec()].concat();
        assert_eq!(of(FORM, &deep), None);
        let long = [b"user=anna&password=x&rest=".as_slice(), &[b'x'; BODY_BYTES_MAX]].concat();
        assert_eq!(of(FORM, &long), None);
        let name = format!("user={}&password=x", "ü".repeat(1000));
        assert_eq!(login_user(FORM, name.as_bytes()).map(|user| user.len()), Some(USER_BYTES_MAX));
    }
}
