//! Directives, and what they say.

use crate::nginx::{Level, guard, log_to, text};
use crate::node::Node;
use crate::status::Format;
use crate::{module, request, upstream};
use ngx::core::Pool;
use ngx::ffi;
use ngx::http::HttpModuleConfExt;
use postanalytics_filter::{BODY_BYTES_MAX, Engine, MaskConfig, Masker};
use std::ffi::{CStr, c_char, c_void};
use std::fmt;
use std::ptr::null_mut;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of a body that are inspected unless `postanalytics_body_limit` says otherwise.
const BODY_LIMIT: usize = 64 * 1024;

/// Where something is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub file: String,
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// What is done with requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Off,
    Monitoring,
    SafeBlocking,
    Block,
}

/// What holds for all of NGINX.
#[derive(Debug, Default)]
pub struct MainConf {
    upstream: Option<(String, Place)>,
    connect_attempts: Option<u32>,
    reconnect_interval: Option<Duration>,
    queue_bytes: Option<usize>,
    masker: Option<Masker>,
    /// Some location filters.
    pub filters: bool,
    /// If so, the rules. The workers share their memory with the master.
    pub engine: Option<Arc<Engine>>,
    /// Addresses of the postanalytics servers.
    pub servers: Vec<String>,
    pub node: Node,
    pub zone: Option<std::ptr::NonNull<ffi::ngx_shm_zone_t>>,
    /// With the configuration, for a master that has given up a newer one forks workers with this one.
    pub replaced: request::Replaced,
}

impl MainConf {
    /// Memory for records of the whole node.
    pub fn queue_bytes(&self) -> usize {
        self.queue_bytes.unwrap_or(100 << 20)
    }

    pub fn reconnect(&self) -> Option<(u32, Duration)> {
        match (self.connect_attempts, self.reconnect_interval) {
            (None, None) => None,
            (attempts, interval) => Some((attempts.unwrap_or(10), interval.unwrap_or(Duration::from_secs(15)))),
        }
    }
}

/// What holds for a location. `None`: what holds around it.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocationConf {
    mode: Option<Mode>,
    application: Option<i32>,
    time_limit: Option<Duration>,
    body_limit: Option<usize>,
    /// Index of a variable.
    client_ip: Option<usize>,
    /// `None` inside: not here.
    page: Option<Option<Format>>,
}

impl LocationConf {
    /// A location that shows the statistics filters nothing, so that whoever looks does not change what he sees.
    pub fn mode(&self) -> Mode {
        if self.page().is_some() { Mode::Off } else { self.mode.unwrap_or(Mode::Off) }
    }

    pub fn application(&self) -> i32 {
        self.application.unwrap_or(-1)
    }

    pub fn time_limit(&self) -> Duration {
        self.time_limit.unwrap_or(postanalytics_filter::PROCESS_TIME_LIMIT)
    }

    pub fn body_limit(&self) -> usize {
        self.body_limit.unwrap_or(BODY_LIMIT)
    }

    pub fn client_ip(&self) -> Option<usize> {
        self.client_ip
    }

    pub fn page(&self) -> Option<Format> {
        self.page.flatten()
    }

    /// `unnamed`: it is no location of its own but an `if` or a `limit_except` in one.
    fn inherit(&mut self, outer: &Self, unnamed: bool) {
        self.mode = self.mode.or(outer.mode);
        self.application = self.application.or(outer.application);
        self.time_limit = self.time_limit.or(outer.time_limit);
        self.body_limit = self.body_limit.or(outer.body_limit);
        self.client_ip = self.client_ip.or(outer.client_ip);
        // The page is where it is asked for, as the handler is.
        self.page = self.page.or(if unnamed { outer.page } else { Some(None) });
    }
}

/// The configuration of the location that answers.
///
/// # Safety
/// `r` is a request in the making.
pub unsafe fn of_location<'a>(r: *mut ffi::ngx_http_request_t) -> &'a LocationConf {
    // SAFETY: the caller's word; the configuration lives as long as the cycle that the request belongs to.
    unsafe { &*(*(*r).loc_conf.add(module().ctx_index)).cast::<LocationConf>() }
}

/// What holds for all of NGINX.
///
/// # Safety
/// As for [`of_location`].
pub unsafe fn of_request<'a>(r: *mut ffi::ngx_http_request_t) -> &'a MainConf {
    // SAFETY: as above.
    unsafe { &*(*(*r).main_conf.add(module().ctx_index)).cast::<MainConf>() }
}

/// The main configuration of a cycle, if it has an `http` block.
///
/// # Safety
/// `cycle` is a cycle of NGINX.
pub unsafe fn of_cycle<'a>(cycle: *mut ffi::ngx_cycle_t) -> Option<&'a MainConf> {
    // SAFETY: the caller's word; [`create_main`] made it.
    unsafe { (*cycle).http_main_conf_unchecked::<MainConf>(module()).map(|conf| conf.as_ref()) }
}

pub unsafe extern "C" fn create_main(cf: *mut ffi::ngx_conf_t) -> *mut c_void {
    // SAFETY: NGINX passes a configuration in the making, with a pool.
    guard(null_mut(), || unsafe { Pool::from_ngx_pool((*cf).pool).allocate(MainConf::default()).cast() })
}

pub unsafe extern "C" fn create_location(cf: *mut ffi::ngx_conf_t) -> *mut c_void {
    // SAFETY: as above.
    guard(null_mut(), || unsafe { Pool::from_ngx_pool((*cf).pool).allocate(LocationConf::default()).cast() })
}

pub unsafe extern "C" fn merge_location(cf: *mut ffi::ngx_conf_t, outer: *mut c_void, conf: *mut c_void) -> *mut c_char {
    guard(failed(), || {
        // SAFETY: both were made by [`create_location`], the main configuration by [`create_main`]; nobody else uses them now.
        let (outer, conf, main) = unsafe {
            let main = (*cf).http_main_conf_unchecked::<MainConf>(module());
            (&*outer.cast::<LocationConf>(), &mut *conf.cast::<LocationConf>(), main)
        };
        // SAFETY: NGINX has `cf` stand for the location that it merges, which has a configuration of the core module.
        let unnamed = unsafe {
            let core = (&raw const ffi::ngx_http_core_module).as_ref_unchecked();
            let location = (*cf).http_location_conf_unchecked::<ffi::ngx_http_core_loc_conf_t>(core);
            location.is_some_and(|location| location.as_ref().noname() != 0)
        };
        conf.inherit(outer, unnamed);
        if let Some(mut main) = main {
            // SAFETY: as above.
            unsafe { main.as_mut() }.filters |= conf.mode() != Mode::Off;
        }
        null_mut()
    })
}

pub unsafe extern "C" fn postconfiguration(cf: *mut ffi::ngx_conf_t) -> ffi::ngx_int_t {
    let error = ffi::NGX_ERROR as ffi::ngx_int_t;
    // SAFETY: NGINX has read the `http` block of this configuration.
    guard(error, || match unsafe { finish(cf) } {
        Ok(()) => ffi::NGX_OK as ffi::ngx_int_t,
        Err(text) => {
            // SAFETY: as above.
            unsafe { log_to((*cf).log, Level::Emergency, &format!("wallarm: {text}")) };
            error
        }
    })
}

/// # Safety
/// NGINX has read the `http` block of this configuration.
unsafe fn finish(cf: *mut ffi::ngx_conf_t) -> Result<(), String> {
    // SAFETY: the caller's word; [`create_main`] made it, and nobody else uses it now.
    let main = unsafe { (*cf).http_main_conf_unchecked::<MainConf>(module()).map(|mut main| main.as_mut()) };
    let Some(main) = main else { return Ok(()) };
    if let Some((name, place)) = &main.upstream {
        // SAFETY: the caller's word.
        main.servers = unsafe { upstream::servers(cf, name, place) }?;
    } else if main.filters {
        let warning = "wallarm: wallarm_mode is on somewhere, and no postanalytics server is named: requests are filtered and \
                       told to nobody; write: wallarm_tarantool_upstream NAME;";
        // SAFETY: the caller's word.
        unsafe { log_to((*cf).log, Level::Warn, warning) };
    }
    main.node = Node::of_this_host();
    // SAFETY: the caller's word.
    main.zone = Some(unsafe { crate::add_zone(cf) }?);
    if main.filters {
        let engine = Engine::builtin();
        main.engine = Some(Arc::new(match main.masker.take() {
            Some(masker) => engine.with_masker(masker),
            None => engine,
        }));
        // SAFETY: the caller's word.
        main.replaced = unsafe { request::install(cf) }?;
    }
    Ok(())
}

/// The words of a directive, its own name first.
struct Words {
    words: Vec<String>,
    place: Place,
    cf: *mut ffi::ngx_conf_t,
}

impl Words {
    fn first(&self) -> &str {
        self.words.get(1).map_or("", String::as_str)
    }
}

const fn failed() -> *mut c_char {
    // NGINX's NGX_CONF_ERROR.
    usize::MAX as *mut c_char
}

/// Calls a setter with what NGINX gives it; tells its error with file and line.
///
/// # Safety
/// `cf` and `conf` are what NGINX calls the setter of a directive with, `conf` was made as a `C`.
unsafe fn set<C>(cf: *mut ffi::ngx_conf_t, conf: *mut c_void, body: fn(&mut C, &Words) -> Result<(), String>) -> *mut c_char {
    guard(failed(), || {
        // SAFETY: the caller's word; the words of a directive are an array of strings.
        let (words, place, conf) = unsafe {
            let words: &[ffi::ngx_str_t] = (*(*cf).args).as_slice();
            let place = match (*cf).conf_file.as_ref() {
                Some(file) => Place { file: text(&file.file.name), line: file.line },
                None => Place { file: String::new(), line: 0 },
            };
            (words.iter().map(text).collect(), place, &mut *conf.cast::<C>())
        };
        let Err(error) = body(conf, &Words { words, place, cf }) else { return null_mut() };
        // SAFETY: the caller's word; `%*s` takes a length and a pointer.
        unsafe { ffi::ngx_conf_log_error(Level::Emergency as usize, cf, 0, c"%*s".as_ptr(), error.len(), error.as_ptr()) };
        failed()
    })
}

/// A directive's value is given once at a level.
fn once<T>(place: &mut Option<T>, words: &Words, value: T) -> Result<(), String> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(format!("\"{}\" directive is duplicate", words.words[0])),
    }
}

fn bad<T>(words: &Words, range: &str) -> Result<T, String> {
    Err(format!("\"{}\" is {:?}, it must be {range}", words.words[0], words.first()))
}

/// `100m`, `64k`, `1g` or bytes.
fn size(text: &str) -> Option<usize> {
    let (digits, unit) = match text.char_indices().last()? {
        (at, 'k' | 'K') => (&text[..at], 1 << 10),
        (at, 'm' | 'M') => (&text[..at], 1 << 20),
        (at, 'g' | 'G') => (&text[..at], 1 << 30),
        _ => (text, 1),
    };
    digits.parse::<usize>().ok()?.checked_mul(unit)
}

/// `1000ms`, `15s`, `2m`, or a number of `plain`.
fn time(text: &str, plain: Duration) -> Option<Duration> {
    let units = [("ms", Duration::from_millis(1)), ("s", Duration::from_secs(1)), ("m", Duration::from_secs(60))];
    let unit = units.into_iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)));
    let (digits, unit) = unit.unwrap_or((text, plain));
    unit.checked_mul(digits.parse().ok()?)
}

fn set_upstream(conf: &mut MainConf, words: &Words) -> Result<(), String> {
    once(&mut conf.upstream, words, (words.first().to_owned(), words.place.clone()))
}

fn set_attempts(conf: &mut MainConf, words: &Words) -> Result<(), String> {
    let Ok(attempts) = words.first().parse() else { return bad(words, "a number of attempts, such as 10") };
    once(&mut conf.connect_attempts, words, attempts)
}

fn set_interval(conf: &mut MainConf, words: &Words) -> Result<(), String> {
    match time(words.first(), Duration::from_secs(1)) {
        Some(interval) if (Duration::from_millis(100)..=Duration::from_secs(3600)).contains(&interval) => {
            once(&mut conf.reconnect_interval, words, interval)
        }
        _ => bad(words, "a time from 100ms to 60m, such as 15s"),
    }
}

fn set_queue(conf: &mut MainConf, words: &Words) -> Result<(), String> {
    match size(words.first()) {
        Some(bytes) if (64 << 10..=1 << 40).contains(&bytes) => once(&mut conf.queue_bytes, words, bytes),
        _ => bad(words, "a size of at least 64k, such as 100m"),
    }
}

fn set_masking(conf: &mut MainConf, words: &Words) -> Result<(), String> {
    let mut file = ffi::ngx_str_t { len: words.first().len(), data: words.first().as_ptr().cast_mut() };
    // SAFETY: NGINX passed `cf` to the setter; what it makes of a relative name lies in the pool of the configuration.
    let file = unsafe {
        if ffi::ngx_conf_full_name((*words.cf).cycle, &raw mut file, 1) != ffi::NGX_OK as ffi::ngx_int_t {
            return bad(words, "the name of a file");
        }
        text(&file)
    };
    let toml = std::fs::read_to_string(&file).map_err(|error| format!("\"{}\" cannot read {file}: {error}", words.words[0]))?;
    let config: MaskConfig = toml::from_str(&toml).map_err(|error| format!("{file}: {error}"))?;
    let masker = Masker::new(&config).map_err(|error| format!("{file}: {error}"))?;
    once(&mut conf.masker, words, masker)
}

fn set_mode(conf: &mut LocationConf, words: &Words) -> Result<(), String> {
    let mode = match words.first() {
        "off" => Mode::Off,
        "monitoring" => Mode::Monitoring,
        "safe_blocking" => Mode::SafeBlocking,
        "block" => Mode::Block,
        _ => return bad(words, "off, monitoring, safe_blocking or block"),
    };
    once(&mut conf.mode, words, mode)
}

fn set_application(conf: &mut LocationConf, words: &Words) -> Result<(), String> {
    match words.first().parse::<i32>() {
        Ok(id) if id == -1 || id >= 1 => once(&mut conf.application, words, id),
        _ => bad(words, "the id of an application, a number from 1 on; -1 is the default application"),
    }
}

fn set_time_limit(conf: &mut LocationConf, words: &Words) -> Result<(), String> {
    match time(words.first(), Duration::from_millis(1)) {
        Some(limit) if (1..=3_600_000).contains(&limit.as_millis()) => once(&mut conf.time_limit, words, limit),
        _ => bad(words, "a number of ms from 1 on, such as 1000"),
    }
}

fn set_body_limit(conf: &mut LocationConf, words: &Words) -> Result<(), String> {
    match size(words.first()) {
        Some(bytes) if bytes <= BODY_BYTES_MAX => once(&mut conf.body_limit, words, bytes),
        _ => bad(words, &format!("a size of at most {}k, such as 64k; 0 looks at no bodies", BODY_BYTES_MAX >> 10)),
    }
}

fn set_client_ip(conf: &mut LocationConf, words: &Words) -> Result<(), String> {
    let Some(name) = words.first().strip_prefix('$').filter(|name| !name.is_empty()) else {
        return bad(words, "a variable that holds an address, such as $http_x_client_ip");
    };
    let mut name = ffi::ngx_str_t { len: name.len(), data: name.as_ptr().cast_mut() };
    // SAFETY: NGINX passed `cf` to the setter; it copies the name.
    let index = unsafe { ffi::ngx_http_get_variable_index(words.cf, &raw mut name) };
    match usize::try_from(index) {
        Ok(index) => once(&mut conf.client_ip, words, index),
        Err(_) => bad(words, "the name of a variable"),
    }
}

fn set_page(conf: &mut LocationConf, words: &Words) -> Result<(), String> {
    let format = match words.words.get(2).map(String::as_str) {
        None | Some("format=json") => Format::Json,
        Some("format=prometheus") => Format::Prometheus,
        Some(other) => return Err(format!("\"wallarm_status\" has {other:?}, it must be format=json or format=prometheus")),
    };
    let page = match words.first() {
        "on" => Some(format),
        "off" => None,
        _ => return bad(words, "on or off"),
    };
    if page.is_some() {
        // SAFETY: NGINX passed `cf` to the setter: it has the configuration of the location that is being read. NGINX numbers its
        // modules before it reads a configuration.
        unsafe {
            let core = (&raw const ffi::ngx_http_core_module).as_ref_unchecked();
            let location = (*words.cf).http_location_conf_unchecked::<ffi::ngx_http_core_loc_conf_t>(core);
            if let Some(mut location) = location {
                location.as_mut().handler = Some(request::show_status);
            }
        }
    }
    once(&mut conf.page, words, page)
}

/// Makes the function that NGINX calls for a directive.
macro_rules! setter {
    ($name:ident, $conf:ty, $body:ident) => {
        unsafe extern "C" fn $name(cf: *mut ffi::ngx_conf_t, _: *mut ffi::ngx_command_t, conf: *mut c_void) -> *mut c_char {
            // SAFETY: NGINX calls it so, for the directives of `COMMANDS`, whose offsets fit.
            unsafe { set::<$conf>(cf, conf, $body) }
        }
    };
}
setter!(upstream_directive, MainConf, set_upstream);
setter!(attempts_directive, MainConf, set_attempts);
setter!(interval_directive, MainConf, set_interval);
setter!(queue_directive, MainConf, set_queue);
setter!(masking_directive, MainConf, set_masking);
setter!(mode_directive, LocationConf, set_mode);
setter!(application_directive, LocationConf, set_application);
setter!(time_limit_directive, LocationConf, set_time_limit);
setter!(body_limit_directive, LocationConf, set_body_limit);
setter!(client_ip_directive, LocationConf, set_client_ip);
setter!(page_directive, LocationConf, set_page);

type Setter = unsafe extern "C" fn(*mut ffi::ngx_conf_t, *mut ffi::ngx_command_t, *mut c_void) -> *mut c_char;

/// NGINX compares names as strings that end in 0.
const fn command(name: &'static CStr, contexts: u32, words: u32, set: Setter, offset: usize) -> ffi::ngx_command_t {
    let name = ffi::ngx_str_t { len: name.count_bytes(), data: name.as_ptr().cast_mut().cast() };
    ffi::ngx_command_t { name, type_: (contexts | words) as usize, set: Some(set), conf: offset, offset: 0, post: null_mut() }
}

const fn main_command(name: &'static CStr, set: Setter) -> ffi::ngx_command_t {
    command(name, ffi::NGX_HTTP_MAIN_CONF, ffi::NGX_CONF_TAKE1, set, ffi::NGX_HTTP_MAIN_CONF_OFFSET)
}

const fn location_command(name: &'static CStr, set: Setter) -> ffi::ngx_command_t {
    let contexts = ffi::NGX_HTTP_MAIN_CONF | ffi::NGX_HTTP_SRV_CONF | ffi::NGX_HTTP_LOC_CONF;
    command(name, contexts, ffi::NGX_CONF_TAKE1, set, ffi::NGX_HTTP_LOC_CONF_OFFSET)
}

/// The directives. NGINX takes a pointer to the first of them, and writes nothing.
pub static mut COMMANDS: [ffi::ngx_command_t; 15] = [
    main_command(c"wallarm_tarantool_upstream", upstream_directive),
    main_command(c"wallarm_wstore_upstream", upstream_directive),
    main_command(c"postanalytics_upstream", upstream_directive),
    main_command(c"wallarm_upstream_connect_attempts", attempts_directive),
    main_command(c"wallarm_upstream_reconnect_interval", interval_directive),
    main_command(c"wallarm_upstream_queue_memory_limit", queue_directive),
    main_command(c"postanalytics_masking", masking_directive),
    location_command(c"wallarm_mode", mode_directive),
    location_command(c"wallarm_application", application_directive),
    location_command(c"wallarm_instance", application_directive),
    location_command(c"wallarm_process_time_limit", time_limit_directive),
    location_command(c"postanalytics_body_limit", body_limit_directive),
    location_command(c"postanalytics_client_ip", client_ip_directive),
    command(
        c"wallarm_status",
        ffi::NGX_HTTP_SRV_CONF | ffi::NGX_HTTP_LOC_CONF,
        ffi::NGX_CONF_TAKE12,
        page_directive,
        ffi::NGX_HTTP_LOC_CONF_OFFSET,
    ),
    ffi::ngx_command_t::empty(),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times() {
        for (text, bytes) in [("100m", 100 << 20), ("64k", 64 << 10), ("2G", 2 << 30), ("7", 7)] {
            assert_eq!(size(text), Some(bytes), "{text}");
        }
        for (text, ms) in [("15s", 15_000), ("1000", 1000), ("1000ms", 1000), ("2m", 120_000)] {
            assert_eq!(time(text, Duration::from_millis(1)), Some(Duration::from_millis(ms)), "{text}");
        }
        for bad in ["", "m", "-1", "1x", "99999999999999999999", "s"] {
            assert_eq!((size(bad), time(bad, Duration::from_secs(1))), (None, None), "{bad}");
        }
    }

    #[test]
    fn a_location_inherits_but_the_page() {
        let outer = LocationConf { mode: Some(Mode::Block), page: Some(Some(Format::Json)), ..LocationConf::default() };
        let mut inner = LocationConf { application: Some(4), ..LocationConf::default() };
        inner.inherit(&outer, false);
        assert_eq!((inner.mode(), inner.application(), inner.page()), (Mode::Block, 4, None));
        let mut condition = LocationConf::default();
        condition.inherit(&outer, true);
        assert_eq!((condition.mode(), condition.page()), (Mode::Off, Some(Format::Json)), "an `if` within shows it, too");
        assert_eq!(outer.mode(), Mode::Off, "whoever looks at the page changes nothing");
        assert_eq!(LocationConf::default().mode(), Mode::Off);
    }
}
