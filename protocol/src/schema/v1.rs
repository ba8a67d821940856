//! Record schema 1.
//!
//! **Frozen once released.** Do not add, remove, reorder or resize anything here: bytes of this layout lie on wires and in
//! arenas. A change is a new schema in a new module. `protocol/testdata/batch-v1.hex` and the assertions below pin it.
//!
//! ```text
//!  archive of a batch: [records: 176 B each][blob][zero padding][root: 16 B]          total a multiple of 16
//!  record:  0 request_id 16 │ 16 client_ip 16 │ 32 event_us 8 │ 40 tenant 8 │ 48 session_hash 8 │ 56 user_hash 8
//!          64 request_bytes 8 │ 72 response_bytes 8 │ 80 application 4 │ 84 response_us 4 │ 88 detection_us 4 │ 92 flags 4
//!          96 server_port 2 │ 98 status 2 │ 100 method 1 │ 101 scheme 1 │ 102 http_version 1 │ 103 zero 1
//!         104 host │ 112 path │ 120 query │ 128 user_agent │ 136 referer │ 144 raw_headers │ 152 raw_body   (spans, 8 B each)
//!         160 hits │ 168 extensions                                              (span: offset, *count* of table entries)
//!  span:    0 offset u32, 4 length u32, both within the blob
//!  hit, in the blob:        0 attack_type u16, 2 severity u8, 3 zero, 4 rule_id u32, 8 point span, 16 payload span   24 B
//!  extension, in the blob:  0 tag u16, 2 zero u16, 4 value span                                                      12 B
//! ```

use rkyv::rancor::Fallible;
use rkyv::ser::{Allocator, Writer, WriterExt};
use rkyv::vec::{ArchivedVec, VecResolver};
use rkyv::with::{ArchiveWith, SerializeWith};
use rkyv::{Archive, Place, Serialize};

/// Number of this schema in frame headers.
pub const SCHEMA: u16 = 1;
/// Bytes of a record in an archive.
pub const RECORD_BYTES: usize = 176;
/// Bytes of the root of an archive, its last bytes.
pub const ROOT_BYTES: usize = 16;
/// Bytes of an entry of a hit table.
pub const HIT_BYTES: usize = 24;
/// Bytes of an entry of an extension table.
pub const EXTENSION_BYTES: usize = 12;
/// Most hits of one record.
pub const HITS_MAX: u32 = 64;
/// Most extensions of one record.
pub const EXTENSIONS_MAX: u32 = 64;

/// A part of the blob: `length` bytes (or table entries) from `offset`.
#[derive(Archive, Serialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[rkyv(derive(Debug))]
pub struct Span {
    /// Where it starts in the blob.
    pub offset: u32,
    /// Bytes; for hits and extensions the number of table entries.
    pub length: u32,
}

/// One processed request: plain data, strings are spans of the batch's blob. See [`crate::RecordFields`] for the meaning
/// of each field.
#[derive(Archive, Serialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[rkyv(derive(Debug))]
#[expect(missing_docs, reason = "RecordFields documents each field, the module the layout")]
pub struct Record {
    pub request_id: [u8; 16],
    pub client_ip: [u8; 16],
    pub event_us: u64,
    pub tenant: u64,
    pub session_hash: u64,
    pub user_hash: u64,
    pub request_bytes: u64,
    pub response_bytes: u64,
    pub application: i32,
    pub response_us: u32,
    pub detection_us: u32,
    pub flags: u32,
    pub server_port: u16,
    pub status: u16,
    pub method: u8,
    pub scheme: u8,
    pub http_version: u8,
    pub zero: u8,
    pub host: Span,
    pub path: Span,
    pub query: Span,
    pub user_agent: Span,
    pub referer: Span,
    pub raw_headers: Span,
    pub raw_body: Span,
    pub hits: Span,
    pub extensions: Span,
}

/// What a Batch frame carries.
#[derive(Archive, Serialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The records, in the order the node saw them.
    pub records: Vec<Record>,
    /// What the spans of the records point into.
    #[rkyv(with = PaddedTo16)]
    pub blob: Vec<u8>,
}

/// Bytes followed by zeros up to a multiple of 16, so that the root comes last and the archive is a multiple of 16.
#[derive(Debug)]
pub struct PaddedTo16;

impl ArchiveWith<Vec<u8>> for PaddedTo16 {
    type Archived = ArchivedVec<u8>;
    type Resolver = VecResolver;

    fn resolve_with(field: &Vec<u8>, resolver: VecResolver, out: Place<ArchivedVec<u8>>) {
        ArchivedVec::resolve_from_slice(field, resolver, out);
    }
}

impl<S: Fallible + Allocator + Writer + ?Sized> SerializeWith<Vec<u8>, S> for PaddedTo16 {
    fn serialize_with(field: &Vec<u8>, serializer: &mut S) -> Result<VecResolver, S::Error> {
        let resolver = ArchivedVec::serialize_from_slice(field, serializer)?;
        serializer.align(16)?;
        Ok(resolver)
    }
}

/// Declares a wire enum: numbers are the wire values, names the field's terms; unknown numbers are data, not errors.
macro_rules! wire_enum {
    ($(#[$doc:meta])* $name:ident : $int:ty { $($(#[$variant_doc:meta])* $variant:ident = $value:literal, $text:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr($int)]
        pub enum $name { $($(#[$variant_doc])* #[doc = concat!("`", $text, "`")] $variant = $value,)* }
        impl $name {
            /// Every value, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];
            /// The value of a wire number, `None` if this version does not know it.
            pub const fn from_wire(value: $int) -> Option<Self> {
                match value { $($value => Some(Self::$variant),)* _ => None }
            }
            /// Its name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
            /// The value of a name, exactly as [`Self::name`] writes it.
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($text => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

wire_enum! {
    /// Request method. 0 on the wire: none of these (extension [`TAG_METHOD`] may carry the text).
    Method: u8 {
        Get = 1, "GET"; Head = 2, "HEAD"; Post = 3, "POST"; Put = 4, "PUT"; Delete = 5, "DELETE"; Connect = 6, "CONNECT";
        Options = 7, "OPTIONS"; Trace = 8, "TRACE"; Patch = 9, "PATCH"; Propfind = 10, "PROPFIND"; Mkcol = 11, "MKCOL";
        Copy = 12, "COPY"; Move = 13, "MOVE"; Lock = 14, "LOCK"; Unlock = 15, "UNLOCK"; Proppatch = 16, "PROPPATCH";
    }
}

wire_enum! {
    /// URL scheme. 0 on the wire: not known.
    Scheme: u8 { Http = 1, "http"; Https = 2, "https"; Ws = 3, "ws"; Wss = 4, "wss"; }
}

wire_enum! {
    /// Attack type of a hit, named as operators know them.
    AttackType: u16 {
        Undefined = 0, "undefined"; Sqli = 1, "sqli"; Xss = 2, "xss"; Rce = 3, "rce"; Ptrav = 4, "ptrav"; Crlf = 5, "crlf";
        Nosqli = 6, "nosqli"; Ssrf = 7, "ssrf"; Ssi = 8, "ssi"; Ldapi = 9, "ldapi"; Xxe = 10, "xxe";
        MailInjection = 11, "mail_injection"; Scanner = 12, "scanner"; Redir = 13, "redir"; Infoleak = 14, "infoleak";
        Brute = 15, "brute"; Dirbust = 16, "dirbust"; Bola = 17, "bola"; CredentialStuffing = 18, "credential_stuffing";
        OverlimitRes = 19, "overlimit_res"; DataBomb = 20, "data_bomb"; Vpatch = 21, "vpatch"; ApiAbuse = 22, "api_abuse";
        InvalidXml = 23, "invalid_xml"; MassAssignment = 24, "mass_assignment";
    }
}

/// HTTP version as ten times its number (`11` is HTTP/1.1); 0: not known.
pub type HttpVersion = u8;

/// Flag: the filter blocked the request.
pub const FLAG_BLOCKED: u32 = 1 << 0;
/// Flag: the source was on the denylist.
pub const FLAG_DENYLIST: u32 = 1 << 1;
/// Flag: the source was on the graylist.
pub const FLAG_GRAYLIST: u32 = 1 << 2;
/// Flag: the filter saw an authentication attempt fail.
pub const FLAG_AUTH_FAILED: u32 = 1 << 3;
/// Flag: the filter saw an authentication attempt succeed. Neither this nor failed: unknown.
pub const FLAG_AUTH_SUCCEEDED: u32 = 1 << 4;
/// Flag: processing took longer than the node's limit.
pub const FLAG_OVERLIMIT: u32 = 1 << 5;
/// Flag: the request carried credentials.
pub const FLAG_CREDENTIALS: u32 = 1 << 6;
/// Flag: the record was written to another server before, which went away and may have stored it.
pub const FLAG_MAYBE_STORED_ELSEWHERE: u32 = 1 << 7;

/// Extension: the text of a method that has no number, bytes.
pub const TAG_METHOD: u16 = 1;

const _: () = {
    use core::mem::{align_of, offset_of, size_of};
    assert!(size_of::<ArchivedRecord>() == RECORD_BYTES && align_of::<ArchivedRecord>() == 1);
    assert!(size_of::<ArchivedBatch>() == ROOT_BYTES && align_of::<ArchivedBatch>() == 1);
    assert!(size_of::<Record>() == RECORD_BYTES);
    assert!(offset_of!(ArchivedRecord, client_ip) == 16 && offset_of!(ArchivedRecord, event_us) == 32);
    assert!(offset_of!(ArchivedRecord, tenant) == 40 && offset_of!(ArchivedRecord, session_hash) == 48);
    assert!(offset_of!(ArchivedRecord, user_hash) == 56 && offset_of!(ArchivedRecord, request_bytes) == 64);
    assert!(offset_of!(ArchivedRecord, response_bytes) == 72 && offset_of!(ArchivedRecord, application) == 80);
    assert!(offset_of!(ArchivedRecord, response_us) == 84 && offset_of!(ArchivedRecord, detection_us) == 88);
    assert!(offset_of!(ArchivedRecord, flags) == 92 && offset_of!(ArchivedRecord, server_port) == 96);
    assert!(offset_of!(ArchivedRecord, status) == 98 && offset_of!(ArchivedRecord, method) == 100);
    assert!(offset_of!(ArchivedRecord, scheme) == 101 && offset_of!(ArchivedRecord, http_version) == 102);
    assert!(offset_of!(ArchivedRecord, host) == 104 && offset_of!(ArchivedRecord, path) == 112);
    assert!(offset_of!(ArchivedRecord, query) == 120 && offset_of!(ArchivedRecord, user_agent) == 128);
    assert!(offset_of!(ArchivedRecord, referer) == 136 && offset_of!(ArchivedRecord, raw_headers) == 144);
    assert!(offset_of!(ArchivedRecord, raw_body) == 152 && offset_of!(ArchivedRecord, hits) == 160);
    assert!(offset_of!(ArchivedRecord, extensions) == 168);
    assert!(offset_of!(ArchivedBatch, records) == 0 && offset_of!(ArchivedBatch, blob) == 8);
};
