//! A request on its way through NGINX.
//!
//! ```text
//!   server rewrite  the `server` block may answer by `return` or a redirect: before that goes out, the source and the head are checked
//!   rewrite phase   the location is known: is the source listed? In block mode, is there an attack in the head? If there is a
//!                   body to be read with it, the head is looked at only when the location answers by `return` or a redirect
//!   access phase    the same once more (realip may know better by now), and in block mode the body, read for that
//!   body filter     the beginning of the body is copied as it comes, whoever reads it
//!   log phase       what was not looked at yet is looked at, and the record goes to the client
//! ```
//!
//! The rewrite phases, not the access phase alone, so that one who only says `return 301 …` refuses whom he must. There ours take the
//! places of all handlers and call them: the rewrite module compares its own number with that of the phase's first
//! handler, so it must not get another one (it would run the `server` block's code twice), and other modules (headers-more, Lua) move
//! the place that they are called from behind all others when they first run, so that whichever may become the first.
//! Subrequests are part of their main request. A request keeps its context through internal redirects, when NGINX forgets it.

use crate::conf::{self, LocationConf, Mode};
use crate::nginx::{self, Level, bytes, guard};
use crate::worker::{self, Worker};
use crate::zone::Counter;
use crate::{module, status};
use ngx::core::Pool;
use ngx::ffi;
use postanalytics_client::{Action, Extension, Request};
use postanalytics_filter::{Findings, RawRequest};
use postanalytics_protocol::schema::v1::{
    FLAG_BLOCKED, FLAG_CREDENTIALS, FLAG_DENYLIST, FLAG_GRAYLIST, FLAG_OVERLIMIT, Method, Scheme, TAG_METHOD,
};
use std::ffi::c_void;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const OK: ffi::ngx_int_t = ffi::NGX_OK as ffi::ngx_int_t;
const ERROR: ffi::ngx_int_t = ffi::NGX_ERROR as ffi::ngx_int_t;
const DECLINED: ffi::ngx_int_t = ffi::NGX_DECLINED as ffi::ngx_int_t;
const DONE: ffi::ngx_int_t = ffi::NGX_DONE as ffi::ngx_int_t;
const CLOSE: ffi::ngx_int_t = ffi::NGX_HTTP_CLOSE as ffi::ngx_int_t;
const FORBIDDEN: ffi::ngx_int_t = ffi::NGX_HTTP_FORBIDDEN as ffi::ngx_int_t;

/// Longest of the texts that go into a record; what is longer is cut, after a look behind the cut for what it must mask. They are
/// inspected whole.
const TEXT_BYTES_MAX: usize = 8 * 1024;
/// Longest part of a line that is no request that is told as its path.
const LINE_BYTES_MAX: usize = 1024;

/// The body filter that comes after ours.
static mut NEXT_BODY_FILTER: ffi::ngx_http_request_body_filter_pt = None;

type HeaderFilter = ffi::ngx_http_output_header_filter_pt;

/// While the rewrite module runs: the header filter that [`check_answer`] stands before, and when that is.
static mut ANSWERING: (HeaderFilter, Moment) = (None, Moment::Located);

/// When a request is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// The `server` block answers by itself, whatever location there would be. Nothing has been sent.
    ServerAnswers,
    /// The location is known.
    Located,
    /// The location answers by `return` or a redirect. Nothing has been sent.
    LocationAnswers,
    Access,
}

/// What is known of a request, if there is anything to remember.
#[derive(Default)]
struct Context {
    listed: Option<Action>,
    /// What was found before the request was answered.
    findings: Option<Findings>,
    /// The beginning of the body, decoded.
    body: Vec<u8>,
    body_truncated: bool,
    /// The end of the body has come by.
    body_ended: bool,
    /// What `body` holds came with the head; nobody has read the body yet.
    preread: bool,
    /// The body has been read on our behalf.
    body_read: bool,
    /// It is refused. Source and application are those of now: the location of the error page may say others.
    refused: Option<(IpAddr, i32)>,
}

// NGINX's pools align to this, so a context may lie in one.
const _: () = assert!(align_of::<Context>() <= ffi::NGX_ALIGNMENT);

/// Most handlers of one rewrite phase: the rewrite module has one, a few other modules have one, too.
const HANDLERS_MAX: usize = 8;

/// The handlers that ours have taken the places of, and call.
#[derive(Clone, Copy, Debug, Default)]
pub struct Replaced {
    server_rewrite: [ffi::ngx_http_handler_pt; HANDLERS_MAX],
    rewrite: [ffi::ngx_http_handler_pt; HANDLERS_MAX],
    /// The one of them that is the rewrite module's, in both phases.
    of_module: ffi::ngx_http_handler_pt,
}

/// Ours, one for each place.
const SERVER_REWRITE: [Handler; HANDLERS_MAX] = [
    server_rewrite_phase::<0>,
    server_rewrite_phase::<1>,
    server_rewrite_phase::<2>,
    server_rewrite_phase::<3>,
    server_rewrite_phase::<4>,
    server_rewrite_phase::<5>,
    server_rewrite_phase::<6>,
    server_rewrite_phase::<7>,
];
const REWRITE: [Handler; HANDLERS_MAX] = [
    rewrite_phase::<0>,
    rewrite_phase::<1>,
    rewrite_phase::<2>,
    rewrite_phase::<3>,
    rewrite_phase::<4>,
    rewrite_phase::<5>,
    rewrite_phase::<6>,
    rewrite_phase::<7>,
];

/// Puts the handlers into their phases.
///
/// # Safety
/// NGINX has read the `http` block of this configuration.
pub unsafe fn install(cf: *mut ffi::ngx_conf_t) -> Result<Replaced, String> {
    // SAFETY: the caller's word: the http core has its main configuration, with a list of handlers for each of these phases.
    unsafe {
        let http = (*cf).ctx.cast::<ffi::ngx_http_conf_ctx_t>();
        let core = *(*http).main_conf.add(ffi::ngx_http_core_module.ctx_index);
        let phases = &raw mut (*core.cast::<ffi::ngx_http_core_main_conf_t>()).phases;
        let handlers = |phase: u32| &raw mut (*phases)[phase as usize].handlers;
        let server_rewrite = replace(handlers(ffi::ngx_http_phases_NGX_HTTP_SERVER_REWRITE_PHASE), &SERVER_REWRITE)?;
        let rewrite = handlers(ffi::ngx_http_phases_NGX_HTTP_REWRITE_PHASE);
        let without = (*rewrite).nelts == 0;
        let replaced = replace(rewrite, &REWRITE)?;
        if without {
            push(rewrite, REWRITE[0])?;
        }
        push(handlers(ffi::ngx_http_phases_NGX_HTTP_ACCESS_PHASE), access_phase)?;
        push(handlers(ffi::ngx_http_phases_NGX_HTTP_LOG_PHASE), log_phase)?;
        // It comes before other modules in NGINX's order; theirs for the two phases may be one, too.
        let of_module = server_rewrite.into_iter().flatten().find(|handler| replaced.iter().any(|other| is(*other, *handler)));
        Ok(Replaced { server_rewrite, rewrite: replaced, of_module })
    }
}

fn is(handler: ffi::ngx_http_handler_pt, other: Handler) -> bool {
    handler.is_some_and(|handler| std::ptr::fn_addr_eq(handler, other))
}

type Handler = unsafe extern "C" fn(*mut ffi::ngx_http_request_t) -> ffi::ngx_int_t;

/// Has ours take the places of the handlers of a phase. Returns those that were there.
///
/// # Safety
/// `handlers` is the list of a phase of a configuration that is being read.
unsafe fn replace(
    handlers: *mut ffi::ngx_array_t,
    ours: &[Handler; HANDLERS_MAX],
) -> Result<[ffi::ngx_http_handler_pt; HANDLERS_MAX], String> {
    let mut replaced = [None; HANDLERS_MAX];
    // SAFETY: the caller's word; the list is made for such handlers.
    unsafe {
        let there = (*handlers).nelts;
        if there > HANDLERS_MAX {
            return Err(format!(
                "{there} modules have a handler in a rewrite phase, at most {HANDLERS_MAX} may; load fewer modules"
            ));
        }
        for at in 0..there {
            let place = (*handlers).elts.cast::<ffi::ngx_http_handler_pt>().add(at);
            replaced[at] = place.replace(Some(ours[at]));
        }
    }
    Ok(replaced)
}

/// # Safety
/// As for [`replace`].
unsafe fn push(handlers: *mut ffi::ngx_array_t, handler: Handler) -> Result<(), String> {
    // SAFETY: the caller's word.
    unsafe {
        let place = ffi::ngx_array_push(handlers).cast::<ffi::ngx_http_handler_pt>();
        place.as_mut().ok_or("out of memory")?.replace(handler);
    }
    Ok(())
}

/// Puts our body filter before all others of this process.
///
/// In the worker, not with the configuration: the chain is the process's, and a configuration that NGINX begins to read and refuses
/// leaves it without the filters of the modules that it had not come to, for the workers that the master forks later.
///
/// # Safety
/// On the one thread of a process that has not done so with this chain.
pub unsafe fn install_body_filter() {
    // SAFETY: the caller's word.
    unsafe {
        NEXT_BODY_FILTER = ffi::ngx_http_top_request_body_filter;
        ffi::ngx_http_top_request_body_filter = Some(body_filter);
    }
}

unsafe extern "C" fn server_rewrite_phase<const AT: usize>(r: *mut ffi::ngx_http_request_t) -> ffi::ngx_int_t {
    // SAFETY: NGINX calls it with a request in the making.
    unsafe {
        // The answer of the `server` block throws the body away.
        guard((), || note_body(r));
        answer(r, conf::of_request(r).replaced.server_rewrite[AT], Moment::ServerAnswers)
    }
}

unsafe extern "C" fn rewrite_phase<const AT: usize>(r: *mut ffi::ngx_http_request_t) -> ffi::ngx_int_t {
    // SAFETY: as above.
    unsafe {
        match checked(r, Moment::Located) {
            DECLINED => answer(r, conf::of_request(r).replaced.rewrite[AT], Moment::LocationAnswers),
            refused => refused,
        }
    }
}

/// # Safety
/// `r` is a request in the making. The worker is not borrowed while NGINX is called back.
unsafe fn checked(r: *mut ffi::ngx_http_request_t, moment: Moment) -> ffi::ngx_int_t {
    // SAFETY: the caller's word.
    unsafe { take_away() };
    // SAFETY: as above.
    guard(DECLINED, || worker::with(|worker| unsafe { check(worker, r, moment) }).unwrap_or(DECLINED))
}

/// Calls a handler of a rewrite phase. An answer of the rewrite module goes out only if the request may have it: it is known by
/// then that it is the location, or the `server` block, that answers, and variables are set. One of another module is not held
/// back, for not every one can take it that a filter fails (a request of Lua's would hang).
///
/// # Safety
/// `r` is a request in the phase that the handler is from.
unsafe fn answer(r: *mut ffi::ngx_http_request_t, handler: ffi::ngx_http_handler_pt, moment: Moment) -> ffi::ngx_int_t {
    let Some(handler) = handler else { return DECLINED };
    // SAFETY: the caller's word. Filters are those of this process, on this one thread.
    unsafe {
        let of_module = is(conf::of_request(r).replaced.of_module, handler);
        if conf::of_location(r).mode() == Mode::Off || r != (*r).main || !of_module {
            return handler(r);
        }
        let is_refused = find(r).is_some_and(|context| context.refused.is_some());
        take_away();
        ANSWERING = (ffi::ngx_http_top_header_filter, moment);
        ffi::ngx_http_top_header_filter = Some(check_answer);
        let answer = handler(r);
        take_away();

        // A status stands for an answer that NGINX makes now. After all else the request may be gone, or has been answered.
        if answer < ffi::NGX_HTTP_SPECIAL_RESPONSE as ffi::ngx_int_t || checked(r, moment) != FORBIDDEN {
            return answer;
        }
        if answer == CLOSE {
            // `return 444`: nobody gets an answer.
            return CLOSE;
        }
        if is_refused {
            // It asked for the page of its refusal. With `recursive_error_pages` NGINX would ask for that again.
            (*r).set_error_page(1);
        }
        if let Some(location) = (*r).headers_out.location.as_mut() {
            location.hash = 0;
            (*r).headers_out.location = std::ptr::null_mut();
        }
        FORBIDDEN
    }
}

/// Takes [`check_answer`] away, if it stands there: the rewrite module is done, or the request goes through the phases once more,
/// and others answer.
///
/// # Safety
/// On the one thread of the process.
unsafe fn take_away() {
    // SAFETY: the caller's word; whoever put it there wrote what comes after it first.
    unsafe {
        if is(ffi::ngx_http_top_header_filter, check_answer) {
            ffi::ngx_http_top_header_filter = ANSWERING.0;
        }
    }
}

/// A header filter: the rewrite module answers with a text, `return 200 …`.
unsafe extern "C" fn check_answer(r: *mut ffi::ngx_http_request_t) -> ffi::ngx_int_t {
    // SAFETY: NGINX calls it with a request that is being answered, while [`answer`] has put it there. It stands there once: what
    // comes after it may answer otherwise, through the phases.
    unsafe {
        let (next, moment) = ANSWERING;
        take_away();
        match (checked(r, moment), next) {
            // As if another filter had failed so: the rewrite module hands it on, and NGINX answers with it.
            (FORBIDDEN, _) => FORBIDDEN,
            (_, Some(next)) => next(r),
            (_, None) => ERROR,
        }
    }
}

unsafe extern "C" fn access_phase(r: *mut ffi::ngx_http_request_t) -> ffi::ngx_int_t {
    // SAFETY: NGINX calls it with a request in the making.
    guard(DECLINED, || match unsafe { checked(r, Moment::Access) } {
        FORBIDDEN => {
            // Not returned: with `satisfy any` another handler of this phase could overrule it.
            // SAFETY: what NGINX does with a handler's 403 without `satisfy any`.
            unsafe { ffi::ngx_http_finalize_request(r, FORBIDDEN) };
            DONE
        }
        READ_BODY => {
            // SAFETY: as NGINX's own modules read a body before the content phase: the reading holds a reference to the request,
            // which is given back here.
            unsafe {
                read_as_dav_would(r);
                let answer = ffi::ngx_http_read_client_request_body(r, Some(body_is_read));
                if answer >= ffi::NGX_HTTP_SPECIAL_RESPONSE as ffi::ngx_int_t {
                    return answer;
                }
                ffi::ngx_http_finalize_request(r, DONE);
            }
            DONE
        }
        answer => answer,
    })
}

/// What [`check`] says if the body is to be read first. NGINX knows no such code.
const READ_BODY: ffi::ngx_int_t = -1000;

/// NGINX's DAV module makes a file of a PUT by renaming the one that the body is in, and asks for that only when it reads the
/// body itself, which is too late here: it would answer 500. It runs only where no other handler has the location (`proxy_pass`
/// and the like), so no body that is passed on comes into a file by this.
///
/// # Safety
/// `r` is a request whose location is known and whose body nobody has read.
unsafe fn read_as_dav_would(r: *mut ffi::ngx_http_request_t) {
    // SAFETY: the caller's word.
    unsafe {
        if (*r).method & ffi::NGX_HTTP_PUT as usize == 0 || (*r).content_handler.is_some() {
            return;
        }
        (*r).set_request_body_in_file_only(1);
        // It has a name, so that it can be renamed, until the request ends.
        (*r).set_request_body_in_persistent_file(1);
        (*r).set_request_body_in_clean_file(1);
        (*r).set_request_body_file_group_access(1);
        (*r).set_request_body_file_log_level(0);
    }
}

unsafe extern "C" fn body_is_read(r: *mut ffi::ngx_http_request_t) {
    // SAFETY: the request waits in our access handler, which is called once more.
    unsafe {
        (*r).write_event_handler = Some(ffi::ngx_http_core_run_phases);
        ffi::ngx_http_core_run_phases(r);
    }
}

/// Whether the request may go on.
///
/// # Safety
/// `r` is a request whose configuration is that of the location, or of the server that answers for it.
unsafe fn check(worker: &Worker, r: *mut ffi::ngx_http_request_t, moment: Moment) -> ffi::ngx_int_t {
    // SAFETY: the caller's word; each of what is called asks for no more.
    unsafe {
        let conf = conf::of_location(r);
        // A handler that waited for something goes through its phase again, and its answer may be on its way by then; after the
        // answer, `post_action` goes through the phases once more.
        if conf.mode() == Mode::Off || r != (*r).main || (*r).header_sent() != 0 {
            return DECLINED;
        }
        let mut context = find(r);
        if context.as_ref().is_some_and(|context| context.refused.is_some()) {
            // It is being shown the page of its refusal. If the `server` block answers for every page, there is none to be shown.
            return if moment == Moment::ServerAnswers { FORBIDDEN } else { DECLINED };
        }
        let source = client_ip(r, conf);
        let listed = worker.listed(source, conf.application());
        let has_body = has_body(r);
        let blocking = conf.mode() == Mode::Block || conf.mode() == Mode::SafeBlocking && listed == Some(Action::Graylist);
        if context.is_none() && (listed.is_some() || blocking || has_body && moment == Moment::Located) {
            context = make(r);
        }
        let Some(context) = context else { return DECLINED };
        context.listed = listed;
        if listed == Some(Action::Denylist) {
            context.refused = Some((source, conf.application()));
            return FORBIDDEN;
        }
        if has_body && moment == Moment::Located {
            keep_preread(context, r, conf);
        }
        if !blocking || context.findings.is_some() {
            return DECLINED;
        }
        let head_alone = has_body && matches!(moment, Moment::ServerAnswers | Moment::LocationAnswers);
        if has_body && conf.body_limit() > 0 && !head_alone {
            if moment == Moment::Located {
                return DECLINED;
            }
            // NGINX counts down what it throws away of a body.
            let unread = (*r).request_body.is_null() && ((*r).headers_in.content_length_n > 0 || (*r).headers_in.chunked() != 0);
            if unread && !std::mem::replace(&mut context.body_read, true) {
                return READ_BODY;
            }
        }
        let (body, body_truncated) = if head_alone { (&b""[..], false) } else { body_of(r, Some(context)) };
        let findings = inspect(worker, r, conf, body, body_truncated);
        let refused = !findings.found.is_empty();
        if refused {
            context.refused = Some((source, conf.application()));
        }
        // What was found in the head alone is no verdict on the body: the log phase looks at both.
        if refused || !head_alone {
            context.findings = Some(findings);
        }
        if refused { FORBIDDEN } else { DECLINED }
    }
}

/// Whether a body was announced, also when it has been read or thrown away, after which NGINX's own count of it is zero.
///
/// # Safety
/// `r` is a request.
unsafe fn has_body(r: *const ffi::ngx_http_request_t) -> bool {
    // SAFETY: the caller's word.
    unsafe {
        let length = header((*r).headers_in.content_length);
        length.iter().any(|digit| (b'1'..=b'9').contains(digit)) || (*r).headers_in.chunked() != 0
    }
}

/// What is there of the body, and whether there was more of it.
///
/// # Safety
/// `r` is a request.
unsafe fn body_of(r: *const ffi::ngx_http_request_t, context: Option<&Context>) -> (&[u8], bool) {
    // SAFETY: the caller's word.
    let has_body = unsafe { has_body(r) };
    match context {
        Some(context) => (&context.body, context.body_truncated || has_body && !context.body_ended),
        None => (b"", has_body),
    }
}

/// Keeps what there is of a body before the `server` block answers.
///
/// # Safety
/// `r` is a request whose head has been read.
unsafe fn note_body(r: *mut ffi::ngx_http_request_t) {
    // SAFETY: the caller's word.
    unsafe {
        let conf = conf::of_location(r);
        if conf.mode() == Mode::Off || r != (*r).main || !has_body(r) {
            return;
        }
        if let Some(context) = find(r).or_else(|| make(r)) {
            keep_preread(context, r, conf);
        }
    }
}

unsafe extern "C" fn body_filter(r: *mut ffi::ngx_http_request_t, chain: *mut ffi::ngx_chain_t) -> ffi::ngx_int_t {
    // SAFETY: NGINX calls it with a request in the making and a chain of buffers.
    guard((), || unsafe { capture(r, chain) });
    // SAFETY: set by [`install`]; nothing else runs while it is.
    match unsafe { NEXT_BODY_FILTER } {
        // SAFETY: what NGINX would have called without us.
        Some(next) => unsafe { next(r, chain) },
        None => ERROR,
    }
}

/// # Safety
/// `r` is a request in the making, `chain` null or a chain of buffers of its body.
unsafe fn capture(r: *mut ffi::ngx_http_request_t, chain: *mut ffi::ngx_chain_t) {
    // SAFETY: the caller's word; what a buffer in memory holds lies between `pos` and `last`.
    unsafe {
        let conf = conf::of_location(r);
        if chain.is_null() || conf.mode() == Mode::Off || conf.body_limit() == 0 || r != (*r).main {
            return;
        }
        let Some(context) = find(r).or_else(|| make(r)) else { return };
        let mut link = chain;
        while let Some(one) = link.as_ref() {
            if let Some(buffer) = one.buf.as_ref() {
                if !buffer.pos.is_null() && buffer.last > buffer.pos {
                    if std::mem::take(&mut context.preread) {
                        // It comes once more.
                        context.body.clear();
                        (context.body_truncated, context.body_ended) = (false, false);
                    }
                    let bytes = std::slice::from_raw_parts(buffer.pos, buffer.last.offset_from_unsigned(buffer.pos));
                    let room = conf.body_limit().saturating_sub(context.body.len());
                    context.body_truncated |= bytes.len() > room;
                    context.body.extend_from_slice(&bytes[..bytes.len().min(room)]);
                }
                // Of a body that was thrown away and is asked for then, nothing comes but an end.
                context.body_ended |= buffer.last_buf() != 0 && !context.preread;
            }
            link = one.next;
        }
    }
}

/// Keeps what came of the body with the head, as much as this location says: if nobody reads the body, that is all there will be of it.
///
/// # Safety
/// `r` is a request whose head has been read.
unsafe fn keep_preread(context: &mut Context, r: *mut ffi::ngx_http_request_t, conf: &LocationConf) {
    // SAFETY: the caller's word. A request of HTTP/2 has no such buffer; chunks are not decoded here.
    unsafe {
        let Some(buffer) = (*r).header_in.as_ref() else { return };
        let length = usize::try_from((*r).headers_in.content_length_n).unwrap_or(0);
        let is_read = !(*r).request_body.is_null() || (*r).discard_body() != 0;
        if !(*r).stream.is_null() || length == 0 || buffer.last <= buffer.pos || is_read {
            return;
        }
        let there = std::slice::from_raw_parts(buffer.pos, buffer.last.offset_from_unsigned(buffer.pos));
        let kept = there.len().min(length).min(conf.body_limit());
        context.body.clear();
        context.body.extend_from_slice(&there[..kept]);
        (context.body_truncated, context.body_ended, context.preread) = (kept < length, there.len() >= length, true);
    }
}

/// `body_truncated`: a part of the body is not there, one that nobody has read, or that is not to be looked at.
///
/// # Safety
/// `r` is a request in the making.
unsafe fn inspect(
    worker: &Worker,
    r: *mut ffi::ngx_http_request_t,
    conf: &LocationConf,
    body: &[u8],
    body_truncated: bool,
) -> Findings {
    // SAFETY: the caller's word.
    unsafe {
        let (method, target) = request_line(r);
        let headers: Vec<(&[u8], &[u8])> = headers(r);
        let request = RawRequest { method, uri: target, headers: &headers, body, body_truncated };
        worker.inspect(&request, conf.time_limit())
    }
}

unsafe extern "C" fn log_phase(r: *mut ffi::ngx_http_request_t) -> ffi::ngx_int_t {
    guard((), || {
        // SAFETY: NGINX calls it with a request that has been answered and not freed.
        worker::with(|worker| unsafe { record(worker, r) });
    });
    OK
}

/// Tells the client, and counts.
///
/// # Safety
/// `r` is a request that has been answered and not freed.
unsafe fn record(worker: &Worker, r: *mut ffi::ngx_http_request_t) {
    // SAFETY: the caller's word; each of what is called asks for no more.
    unsafe {
        let conf = conf::of_location(r);
        if r != (*r).main {
            return;
        }
        let mut context = find(r);
        let refused = context.as_ref().and_then(|context| context.refused);
        if conf.mode() == Mode::Off && refused.is_none() {
            return;
        }
        let blocked = refused.is_some();
        let listed = context.as_ref().and_then(|context| context.listed);
        let denied = blocked && listed == Some(Action::Denylist);
        let findings = match context.as_mut().and_then(|context| context.findings.take()) {
            Some(findings) => findings,
            // Whoever is on the denylist is not looked at any more.
            None if denied => Findings::default(),
            None => {
                let (body, body_truncated) = body_of(r, context.as_deref());
                inspect(worker, r, conf, body, body_truncated)
            }
        };

        let (source, application) = refused.unwrap_or_else(|| (client_ip(r, conf), conf.application()));
        let user = if (*r).headers_in.authorization.is_null() { b"" } else { basic_user(r) };
        let form_user = if user.is_empty() { login_user(r, context.as_deref()) } else { None };
        let user = form_user.as_deref().unwrap_or(user);
        let r = &*r;
        let connection = &*r.connection;
        let (method_text, target) = request_line(r);
        let (path, query) = match target.iter().position(|&byte| byte == b'?') {
            Some(at) => (&target[..at], &target[at + 1..]),
            None => (target, &b""[..]),
        };
        let masker = worker.engine().masker();
        let told = |text| masker.start_of_text(text, TEXT_BYTES_MAX);
        let (path, query) = (told(path), told(query));
        let (user_agent, referer) = (told(header(r.headers_in.user_agent)), told(header(r.headers_in.referer)));
        let host = host(r);
        let host = &host[..host.len().min(TEXT_BYTES_MAX)];

        let method = std::str::from_utf8(method_text).ok().and_then(Method::from_name);
        let unnumbered = [Extension { tag: TAG_METHOD, value: &method_text[..method_text.len().min(32)] }];
        let extensions: &[Extension<'_>] = if method.is_none() && !method_text.is_empty() { &unnumbered } else { &[] };
        let flags = [
            (blocked, FLAG_BLOCKED),
            (listed == Some(Action::Denylist), FLAG_DENYLIST),
            (listed == Some(Action::Graylist), FLAG_GRAYLIST),
            (findings.overlimit, FLAG_OVERLIMIT),
            (!r.headers_in.authorization.is_null() || form_user.is_some(), FLAG_CREDENTIALS),
        ];
        let (event_us, response_us) = times(r);
        let hits = findings.hits();
        let (request_bytes, response_bytes) = (r.request_length.max(0) as u64, connection.sent.max(0) as u64);
        let request = Request {
            request_id: worker.request_id(),
            client_ip: source,
            event_us,
            application,
            response_us,
            detection_us: findings.elapsed_us(),
            request_bytes,
            response_bytes,
            flags: flags.iter().filter(|(holds, _)| *holds).map(|(_, flag)| flag).sum(),
            server_port: nginx::address(connection.local_sockaddr).map_or(0, |(_, port)| port),
            status: status_of(r),
            method: method.map_or(0, |method| method as u8),
            scheme: if connection.ssl.is_null() { Scheme::Http } else { Scheme::Https } as u8,
            http_version: version(r),
            user,
            host,
            path: &path,
            query: &query,
            user_agent: &user_agent,
            referer: &referer,
            hits: &hits,
            extensions,
            ..Request::default()
        };
        worker.send(&request);

        count(worker, &request, &findings);
    }
}

fn count(worker: &Worker, request: &Request<'_>, findings: &Findings) {
    let attacked = !findings.found.is_empty();
    let blocked = request.flags & FLAG_BLOCKED != 0;
    let denied = blocked && request.flags & FLAG_DENYLIST != 0;
    let counted = [
        (Counter::Requests, true, 1),
        (Counter::Attacks, attacked, 1),
        (Counter::Blocked, blocked, 1),
        (Counter::BlockedByAcl, denied, 1),
        (Counter::Abnormal, attacked || findings.overlimit || findings.incomplete, 1),
        (Counter::Incomplete, findings.incomplete, 1),
        (Counter::BytesIn, true, request.request_bytes),
        (Counter::BytesOut, true, request.response_bytes),
        (Counter::BytesBlockedIn, blocked, request.request_bytes),
        (Counter::BytesBlockedOut, blocked, request.response_bytes),
        (Counter::OverlimitsTime, findings.overlimit, 1),
        (Counter::DetectUs, true, request.detection_us.into()),
    ];
    let application = worker.application(request.application);
    for (counter, _, value) in counted.into_iter().filter(|(_, holds, _)| *holds) {
        worker.count(application, counter, value);
    }
}

/// Method and target as they came. For a line that is no request: no method, and the line as the target.
///
/// # Safety
/// `r` is a request, however far it has been read.
unsafe fn request_line<'a>(r: *const ffi::ngx_http_request_t) -> (&'a [u8], &'a [u8]) {
    // SAFETY: the caller's word; strings of a request live as long as it, longer than any use of them here.
    let r = unsafe { &*r };
    let line = bytes(&r.request_line);
    let mut words = line.splitn(2, |&byte| byte == b' ');
    let (method, rest) = (words.next().unwrap_or(b""), words.next().unwrap_or(b""));
    // An error page turns the method into GET, so the line is asked first.
    let method = if method.is_empty() { bytes(&r.method_name) } else { method };
    let target = bytes(&r.unparsed_uri);
    if !target.is_empty() {
        return (method, target);
    }
    let target = rest.iter().rposition(|&byte| byte == b' ').map_or(rest, |end| &rest[..end]);
    if !target.is_empty() {
        return (method, target);
    }
    if !line.is_empty() {
        return (b"", &line[..line.len().min(LINE_BYTES_MAX)]);
    }
    // SAFETY: NGINX reads the head into this buffer; what it has read lies between `start` and `last`, `pos` between these.
    let raw = unsafe {
        match r.header_in.as_ref() {
            Some(buffer) if !buffer.start.is_null() && r.stream.is_null() => {
                // Requests that came before on this connection may lie in front.
                let read = buffer.start..buffer.last;
                let begin = if read.contains(&r.request_start) { r.request_start } else { buffer.pos };
                if begin < buffer.last { std::slice::from_raw_parts(begin, buffer.last.offset_from_unsigned(begin)) } else { b"" }
            }
            _ => b"",
        }
    };
    let end = raw.iter().position(|byte| matches!(byte, b'\r' | b'\n')).unwrap_or(raw.len());
    (b"", &raw[..end.min(LINE_BYTES_MAX)])
}

/// # Safety
/// `r` is a request.
unsafe fn headers<'a>(r: *const ffi::ngx_http_request_t) -> Vec<(&'a [u8], &'a [u8])> {
    let mut headers = Vec::with_capacity(24);
    // SAFETY: the caller's word; a list of NGINX is parts of so many elements; before it is made all of it is zero.
    unsafe {
        let mut part = Some(&(*r).headers_in.headers.part);
        while let Some(one) = part {
            if !one.elts.is_null() {
                let elements = std::slice::from_raw_parts(one.elts.cast::<ffi::ngx_table_elt_t>(), one.nelts);
                headers.extend(elements.iter().map(|element| (bytes(&element.key), bytes(&element.value))));
            }
            part = one.next.as_ref();
        }
    }
    headers
}

/// The value of a header that NGINX knows by name, empty if it did not come.
///
/// # Safety
/// `header` is null or a header of a request.
unsafe fn header<'a>(header: *const ffi::ngx_table_elt_t) -> &'a [u8] {
    // SAFETY: the caller's word.
    unsafe { header.as_ref() }.map_or(b"", |header| bytes(&header.value))
}

/// The host whose site was asked for, as `$host` has it: small letters, no port; that of the target, if it names one, whatever the
/// header says; the server's own name without either. Detectors count for each host, so a visitor must not have
/// many for one site.
///
/// # Safety
/// `r` is a request that has been answered and not freed.
unsafe fn host<'a>(r: *const ffi::ngx_http_request_t) -> &'a [u8] {
    // SAFETY: the caller's word; a request has the settings of the core module for a server.
    unsafe {
        let asked = bytes(&(*r).headers_in.server);
        if !asked.is_empty() {
            return asked;
        }
        let core = *(*r).srv_conf.add(ffi::ngx_http_core_module.ctx_index);
        bytes(&(*core.cast::<ffi::ngx_http_core_srv_conf_t>()).server_name)
    }
}

/// The user whom a body names beside a password, if it was sent to be taken.
///
/// # Safety
/// `r` is a request.
unsafe fn login_user(r: *const ffi::ngx_http_request_t, context: Option<&Context>) -> Option<Vec<u8>> {
    let context = context.filter(|context| !context.body.is_empty())?;
    // SAFETY: the caller's word.
    let (sent, content_type) = unsafe { (request_line(r).0, header((*r).headers_in.content_type)) };
    let takes = matches!(sent, b"POST" | b"PUT");
    if takes { postanalytics_filter::login_user(content_type, &context.body) } else { None }
}

/// The user of HTTP Basic, empty if there is none.
///
/// # Safety
/// `r` is a request whose head has been read.
unsafe fn basic_user<'a>(r: *mut ffi::ngx_http_request_t) -> &'a [u8] {
    // SAFETY: the caller's word; NGINX decodes the header into the request, as for `$remote_user`.
    unsafe { if ffi::ngx_http_auth_basic_user(r) == OK { bytes(&(*r).headers_in.user) } else { b"" } }
}

/// When it came, Unix µs, and the time since then, µs.
fn times(r: &ffi::ngx_http_request_t) -> (u64, u32) {
    let now = ffi::ngx_timeofday();
    let begun_ms = r.start_sec.saturating_mul(1000).saturating_add_unsigned(r.start_msec as u64);
    let now_ms = now.sec.saturating_mul(1000).saturating_add_unsigned(now.msec as u64);
    let took_us = now_ms.saturating_sub(begun_ms).max(0).saturating_mul(1000);
    ((begun_ms.max(0) as u64).saturating_mul(1000), u32::try_from(took_us).unwrap_or(u32::MAX))
}

/// The HTTP version times ten; NGINX has it times a thousand, but 9 for 0.9.
fn version(r: &ffi::ngx_http_request_t) -> u8 {
    let version = if r.http_version < 1000 { r.http_version } else { r.http_version / 1000 * 10 + r.http_version % 1000 };
    u8::try_from(version).unwrap_or(0)
}

/// The status as `$status` has it.
fn status_of(r: &ffi::ngx_http_request_t) -> u16 {
    let status = if r.err_status != 0 { r.err_status } else { r.headers_out.status };
    u16::try_from(status).unwrap_or(0)
}

/// Who it is from: what the variable says, if one is named and says an address, else whom NGINX takes for the client, which
/// the realip module may have set. The unspecified address if it came by a Unix socket.
///
/// # Safety
/// `r` is a request, however far it has been read.
unsafe fn client_ip(r: *mut ffi::ngx_http_request_t, conf: &LocationConf) -> IpAddr {
    // SAFETY: the caller's word; the index is one that NGINX gave out for this configuration.
    unsafe {
        if let Some(index) = conf.client_ip()
            && let Some(value) = variable(r, index).as_ref()
            && value.not_found() == 0
            && let Some(address) = parse_ip(value.as_bytes())
        {
            return address;
        }
        nginx::address((*(*r).connection).sockaddr).map_or(Ipv4Addr::UNSPECIFIED.into(), |(address, _)| address)
    }
}

/// The value of a variable, null if there is none. A regular expression that it takes, as of a `map`, leaves alone what that of
/// the location has captured.
///
/// # Safety
/// `r` is a request, `index` one that NGINX gave out for its configuration.
unsafe fn variable(r: *mut ffi::ngx_http_request_t, index: usize) -> *mut ffi::ngx_http_variable_value_t {
    // SAFETY: the caller's word. With this bit NGINX captures to a place of its own, as for a subrequest.
    unsafe {
        let captured = ((*r).captures, (*r).ncaptures, (*r).captures_data, (*r).realloc_captures());
        (*r).set_realloc_captures(1);
        let value = ffi::ngx_http_get_flushed_variable(r, index);
        let bit;
        ((*r).captures, (*r).ncaptures, (*r).captures_data, bit) = captured;
        (*r).set_realloc_captures(bit);
        value
    }
}

/// An address, with a port or without.
fn parse_ip(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?.trim();
    let address = text.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()));
    address.map(|address: IpAddr| address.to_canonical())
}

/// The context of a request, if it has one.
///
/// # Safety
/// `r` is a request; nobody else has its context now.
unsafe fn find<'a>(r: *mut ffi::ngx_http_request_t) -> Option<&'a mut Context> {
    // SAFETY: the caller's word. A context is made by [`make`] alone and lives as long as the request's pool.
    unsafe {
        let place = (*r).ctx.add(module().ctx_index);
        if (*place).is_null() && ((*r).internal() != 0 || (*r).filter_finalize() != 0) {
            // NGINX clears the contexts of modules on an internal redirect; the pool still knows ours.
            let mut cleanup = (*(*r).pool).cleanup;
            while let Some(one) = cleanup.as_ref() {
                if one.handler.is_some_and(|handler| std::ptr::fn_addr_eq(handler, forget as unsafe extern "C" fn(*mut c_void))) {
                    *place = one.data;
                    break;
                }
                cleanup = one.next;
            }
        }
        (*place).cast::<Context>().as_mut()
    }
}

/// Makes the context of a request that has none.
///
/// # Safety
/// As for [`find`].
unsafe fn make<'a>(r: *mut ffi::ngx_http_request_t) -> Option<&'a mut Context> {
    // SAFETY: the caller's word. The memory is the pool's, the handler drops what was written there when the pool goes.
    unsafe {
        let cleanup = ffi::ngx_pool_cleanup_add((*r).pool, size_of::<Context>()).as_mut()?;
        let context = cleanup.data.cast::<Context>();
        context.write(Context::default());
        cleanup.handler = Some(forget);
        *(*r).ctx.add(module().ctx_index) = context.cast();
        context.as_mut()
    }
}

unsafe extern "C" fn forget(context: *mut c_void) {
    // SAFETY: [`make`] wrote it there, and NGINX calls this once.
    guard((), || unsafe { context.cast::<Context>().drop_in_place() });
}

/// Answers with the statistics of the node.
pub unsafe extern "C" fn show_status(r: *mut ffi::ngx_http_request_t) -> ffi::ngx_int_t {
    // SAFETY: NGINX calls it as the content handler of a request.
    guard(ERROR, || unsafe { answer_status(r) })
}

/// # Safety
/// `r` is a request in its content phase.
unsafe fn answer_status(r: *mut ffi::ngx_http_request_t) -> ffi::ngx_int_t {
    // SAFETY: the caller's word, here and below.
    unsafe {
        if (*r).method & (ffi::NGX_HTTP_GET | ffi::NGX_HTTP_HEAD) as usize == 0 {
            return ffi::NGX_HTTP_NOT_ALLOWED as ffi::ngx_int_t;
        }
        let discarded = ffi::ngx_http_discard_request_body(r);
        if discarded != OK {
            return discarded;
        }
        let (Some(format), Some(zone)) = (conf::of_location(r).page(), crate::zone()) else {
            return ffi::NGX_HTTP_NOT_FOUND as ffi::ngx_int_t;
        };
        worker::with(Worker::publish);
        zone.bury(nginx::lives);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let page = status::page(format, &zone.totals(), now);

        let pool = Pool::from_ngx_pool((*r).pool);
        let Some(mut buffer) = pool.create_buffer_from_str(&page) else {
            nginx::log(Level::Error, "wallarm: no memory for the statistics page");
            return ffi::NGX_HTTP_INTERNAL_SERVER_ERROR as ffi::ngx_int_t;
        };
        let content_type = format.content_type();
        let content_type = ffi::ngx_str_t { len: content_type.len(), data: content_type.as_ptr().cast_mut() };
        (*r).headers_out.status = ffi::NGX_HTTP_OK as usize;
        (*r).headers_out.content_length_n = page.len() as i64;
        (*r).headers_out.content_type = content_type;
        (*r).headers_out.content_type_len = content_type.len;
        let sent = ffi::ngx_http_send_header(r);
        if sent == ERROR || sent > OK || (*r).header_only() != 0 {
            return sent;
        }
        use ngx::core::Buffer;
        buffer.set_last_buf(r == (*r).main);
        buffer.set_last_in_chain(true);
        let mut chain = ffi::ngx_chain_t { buf: buffer.as_ngx_buf_mut(), next: std::ptr::null_mut() };
        ffi::ngx_http_output_filter(r, &raw mut chain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_variables() {
        for (text, address) in [
            ("192.0.2.1", "192.0.2.1"),
            (" 192.0.2.1:80", "192.0.2.1"),
            ("[2001:db8::1]:1", "2001:db8::1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
        ] {
            assert_eq!(parse_ip(text.as_bytes()), Some(address.parse().expect("an address")), "{text}");
        }
        for bad in ["", "-", "unknown", "192.0.2.1, 192.0.2.2", "a.example"] {
            assert_eq!(parse_ip(bad.as_bytes()), None, "{bad}");
        }
    }
}
