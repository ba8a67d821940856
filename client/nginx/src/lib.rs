//! An NGINX module that filters requests, obeys verdicts, and hands what it saw to postanalytics.
//!
//! `docs/nginx.md` is for those who use it. Where to read:
//!
//! - [`conf`] the directives, [`upstream`] the block that names the servers
//! - [`worker`] what a worker process has, from fork to exit
//! - [`request`] a request's way through the phases of NGINX
//! - [`zone`] counters of the node in shared memory, [`status`] their page, [`logging`] what goes to the error log
//!
//! NGINX calls; nothing here unwinds into it ([`nginx::guard`]). A worker has one thread that NGINX calls on, and the client's.
//! Unsafe code is where NGINX's structures are read; each block says why it may.
#![allow(
    clippy::missing_safety_doc,
    reason = "callbacks of NGINX have one contract, that of the place where NGINX is told of them"
)]
#![allow(missing_docs, unreachable_pub, reason = "nobody links this crate: NGINX loads it")]

pub mod conf;
pub mod logging;
pub mod nginx;
pub mod node;
pub mod request;
pub mod status;
pub mod upstream;
pub mod worker;
pub mod zone;

use nginx::guard;
use ngx::ffi;
use std::ffi::c_void;
use std::ptr::{self, NonNull, null_mut};
use std::sync::atomic::{AtomicPtr, Ordering::Relaxed};
use zone::Zone;

const OK: ffi::ngx_int_t = ffi::NGX_OK as ffi::ngx_int_t;
const ERROR: ffi::ngx_int_t = ffi::NGX_ERROR as ffi::ngx_int_t;
const ZONE_NAME: &str = "postanalytics";
/// The zone, and what NGINX's allocator needs beside it.
const ZONE_BYTES: usize = size_of::<Zone>() + 64 * 1024;

static CONTEXT: ffi::ngx_http_module_t = ffi::ngx_http_module_t {
    preconfiguration: None,
    postconfiguration: Some(conf::postconfiguration),
    create_main_conf: Some(conf::create_main),
    init_main_conf: None,
    create_srv_conf: None,
    merge_srv_conf: None,
    create_loc_conf: Some(conf::create_location),
    merge_loc_conf: Some(conf::merge_location),
};

/// What NGINX is told of the module. NGINX writes the module's numbers into it.
#[allow(non_upper_case_globals, reason = "it is the name that NGINX shows")]
pub static mut ngx_http_postanalytics_module: ffi::ngx_module_t = ffi::ngx_module_t {
    ctx: (&raw const CONTEXT).cast_mut().cast(),
    commands: &raw mut conf::COMMANDS as *mut ffi::ngx_command_t,
    type_: ffi::NGX_HTTP_MODULE as usize,
    init_module: Some(init_module),
    init_process: Some(init_process),
    exit_process: Some(exit_process),
    ..ffi::ngx_module_t::default()
};

ngx::ngx_modules!(ngx_http_postanalytics_module);

/// The module as NGINX knows it.
pub fn module() -> &'static ffi::ngx_module_t {
    // SAFETY: NGINX writes its numbers before it calls anything of the module, and never again.
    unsafe { (&raw const ngx_http_postanalytics_module).as_ref_unchecked() }
}

/// The counters of the node, once NGINX has made the zone of this configuration.
static ZONE: AtomicPtr<Zone> = AtomicPtr::new(null_mut());

/// The counters of the node.
pub fn zone() -> Option<&'static Zone> {
    // SAFETY: set to what lies in shared memory that this process has mapped; a configuration that is given up in favour of
    // another one hands the same memory on.
    unsafe { ZONE.load(Relaxed).as_ref() }
}

/// Asks NGINX for the zone.
///
/// # Safety
/// `cf` is a configuration that is being read.
pub unsafe fn add_zone(cf: *mut ffi::ngx_conf_t) -> Result<NonNull<ffi::ngx_shm_zone_t>, String> {
    let mut name = ffi::ngx_str_t { len: ZONE_NAME.len(), data: ZONE_NAME.as_ptr().cast_mut() };
    // SAFETY: the caller's word; NGINX keeps the name, which is static. A zone of the same name, size and tag outlives a reload.
    unsafe {
        let tag = ptr::from_ref(module()).cast_mut().cast();
        let zone = NonNull::new(ffi::ngx_shared_memory_add(cf, &raw mut name, ZONE_BYTES, tag)).ok_or("no shared memory")?;
        (*zone.as_ptr()).init = Some(init_zone);
        Ok(zone)
    }
}

/// NGINX has mapped the zone: made it, or handed it on with what the configuration before it had there.
unsafe extern "C" fn init_zone(zone: *mut ffi::ngx_shm_zone_t, former: *mut c_void) -> ffi::ngx_int_t {
    guard(ERROR, || {
        // SAFETY: NGINX calls it with a zone that is mapped and begins with its allocator.
        unsafe {
            let data = if former.is_null() {
                ffi::ngx_slab_calloc((*zone).shm.addr.cast(), size_of::<Zone>()).cast::<Zone>()
            } else {
                former.cast::<Zone>()
            };
            let Some(counters) = data.as_ref() else { return ERROR };
            counters.name_start(fastrand::u64(1..1 << 53));
            (*zone).data = data.cast();
        }
        OK
    })
}

/// The configuration holds. In the master, before it forks.
unsafe extern "C" fn init_module(cycle: *mut ffi::ngx_cycle_t) -> ffi::ngx_int_t {
    guard(ERROR, || {
        // SAFETY: NGINX calls it with a cycle whose configuration has been read and whose zones have been made.
        unsafe {
            let Some(main) = conf::of_cycle(cycle) else { return OK };
            if let Some(zone) = main.zone {
                ZONE.store((*zone.as_ptr()).data.cast(), Relaxed);
            }
            if main.engine.is_some() && worker::with(|_| ()).is_some() {
                // A worker that is its own master has read its configuration again, and has the chains of filters of that.
                request::install_body_filter();
            }
        }
        OK
    })
}

/// A process has been forked: is it a worker?
unsafe extern "C" fn init_process(cycle: *mut ffi::ngx_cycle_t) -> ffi::ngx_int_t {
    guard((), || {
        // SAFETY: NGINX calls it with the cycle of the process; the core module's configuration is there.
        unsafe {
            if !matches!(ffi::ngx_process as u32, ffi::NGX_PROCESS_WORKER | ffi::NGX_PROCESS_SINGLE) {
                return;
            }
            let (Some(main), Some(zone)) = (conf::of_cycle(cycle), zone()) else { return };
            if let Some(engine) = &main.engine {
                let core = *(*cycle).conf_ctx.add(ffi::ngx_core_module.index);
                let workers = usize::try_from((*core.cast::<ffi::ngx_core_conf_t>()).worker_processes).unwrap_or(1);
                worker::start(main, engine, zone, workers);
                request::install_body_filter();
            }
        }
    });
    OK
}

unsafe extern "C" fn exit_process(_: *mut ffi::ngx_cycle_t) {
    guard((), worker::stop);
}
