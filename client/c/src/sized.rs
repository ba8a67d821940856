//! Structures whose size the caller tells, and other memory of the caller: the only place that reads or writes it.

use crate::errors::Failure;
use crate::types::{pa_bytes, pa_config, pa_extension, pa_hit, pa_request, pa_server_status, pa_stats, pa_status};
use std::ffi::{CStr, c_char};
use std::mem::MaybeUninit;

/// No version of a structure will be longer: a `struct_size` that is, was never set.
const SIZE_MAX: usize = 4096;

/// A structure that may grow: `#[repr(C)]`, `struct_size` first, aligned to 8 bytes, any bytes are a value, all zero are the
/// defaults of what follows its first `SIZE_MIN` bytes.
///
/// # Safety
///
/// All of that holds, and there is no padding.
pub(crate) unsafe trait Growing: Copy {
    /// For messages.
    const NAME: &'static str;
    /// Every version has at least so many bytes.
    const SIZE_MIN: usize = 16;
}

/// States that a structure is as [`Growing`] wants it, and checks what can be checked.
macro_rules! sized {
    ($name:ident, $size_min:expr, $last:ident: $last_bytes:expr) => {
        const _: () = {
            assert!(std::mem::offset_of!($name, struct_size) == 0 && align_of::<$name>() == 8);
            assert!(size_of::<$name>() % 8 == 0 && size_of::<$name>() <= SIZE_MAX && $size_min % 8 == 0);
            assert!(std::mem::offset_of!($name, $last) + $last_bytes == size_of::<$name>(), "it ends in padding");
        };
        // SAFETY: integers, arrays of them and raw pointers, for which any bytes will do; the rest was checked above.
        unsafe impl Growing for $name {
            const NAME: &'static str = stringify!($name);
            const SIZE_MIN: usize = $size_min;
        }
    };
}

sized!(pa_config, 16, reserved: 4);
sized!(pa_hit, 48, reserved: 1);
sized!(pa_request, 48, extensions_length: 8);
sized!(pa_stats, 16, panics_caught: 8);
sized!(pa_status, 24, last_error: 512);
sized!(pa_server_status, 24, last_error: 512);

/// Copies the caller's structure. What it lacks is zero; what it has beyond ours must be zero.
///
/// # Safety
///
/// `pointer` is NULL, or points to as many readable bytes as the structure's first field says.
pub(crate) unsafe fn read<T: Growing>(pointer: *const T) -> Result<T, Failure> {
    // SAFETY: the caller's promise.
    let size = unsafe { size_of_caller(pointer) }?;
    let known = size.min(size_of::<T>());
    // SAFETY: as the caller promised, `size` bytes are readable, of which these are the last.
    let unknown = unsafe { std::slice::from_raw_parts(pointer.cast::<u8>().add(known), size - known) };
    if unknown.iter().any(|&byte| byte != 0) {
        return Err(Failure::invalid(format_args!(
            "{} has {size} bytes, of which this library knows {known}, and the others are not zero: it was built with a newer \
             header and asks for what this library does not have; install the newer library",
            T::NAME
        )));
    }
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: `known` bytes can be read there and written here; they do not overlap; any bytes are a value of T.
    unsafe {
        std::ptr::copy_nonoverlapping(pointer.cast::<u8>(), value.as_mut_ptr().cast::<u8>(), known);
        Ok(value.assume_init())
    }
}

/// Writes as much of `value` as the caller's structure has room for, and zeros beyond; its `struct_size` stays.
///
/// # Safety
///
/// `pointer` is NULL, or points to as many readable and writable bytes as the structure's first field says.
pub(crate) unsafe fn write<T: Growing>(pointer: *mut T, value: &T) -> Result<(), Failure> {
    // SAFETY: the caller's promise.
    let size = unsafe { size_of_caller(pointer) }?;
    let (first, known) = (size_of::<usize>(), size.min(size_of::<T>()));
    let (from, to) = (std::ptr::from_ref(value).cast::<u8>(), pointer.cast::<u8>());
    // SAFETY: `known` bytes can be read of the one and written of the other, and `size` bytes of the other; T has no padding;
    // `value` is ours, so they do not overlap.
    unsafe {
        std::ptr::copy_nonoverlapping(from.add(first), to.add(first), known - first);
        std::ptr::write_bytes(to.add(known), 0, size - known);
    }
    Ok(())
}

/// # Safety
///
/// `pointer` is NULL or points to a readable size.
unsafe fn size_of_caller<T: Growing>(pointer: *const T) -> Result<usize, Failure> {
    if pointer.is_null() {
        return Err(Failure::invalid(format_args!("the pointer to {} is NULL", T::NAME)));
    }
    // SAFETY: not NULL, so it points to a size, which need not be aligned.
    let size = unsafe { pointer.cast::<usize>().read_unaligned() };
    // A multiple of 8, so that it ends between fields.
    if (T::SIZE_MIN..=SIZE_MAX).contains(&size) && size.is_multiple_of(8) {
        return Ok(size);
    }
    Err(Failure::invalid(format_args!("{}.struct_size is {size}: set it to sizeof({}), as PA_..._INIT does", T::NAME, T::NAME)))
}

impl pa_bytes {
    /// # Safety
    ///
    /// `data` is NULL, or points to `length` readable bytes that live as long as `'a`.
    pub(crate) unsafe fn get<'a>(self, name: &str) -> Result<&'a [u8], Failure> {
        // SAFETY: the caller's promise.
        unsafe { slice(self.data.cast(), self.length, name) }
    }
}

/// # Safety
///
/// `data` is NULL, or points to `length` readable values that live as long as `'a`.
pub(crate) unsafe fn slice<'a, T>(data: *const T, length: usize, name: &str) -> Result<&'a [T], Failure> {
    if length == 0 {
        return Ok(&[]);
    }
    if data.is_null() || !data.is_aligned() || length > isize::MAX as usize / size_of::<T>() {
        return Err(Failure::invalid(format_args!("{name} has {length} entries at {data:p}: that cannot be")));
    }
    // SAFETY: not NULL, aligned, of a possible size, and readable as the caller promised.
    Ok(unsafe { std::slice::from_raw_parts(data, length) })
}

/// # Safety
///
/// `pointer` is NULL, or points to a text with a zero at its end that lives as long as `'a`.
pub(crate) unsafe fn text<'a>(pointer: *const c_char, name: &str) -> Result<Option<&'a str>, Failure> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: not NULL, so it points to a text with a zero at its end.
    let text = unsafe { CStr::from_ptr(pointer) };
    text.to_str().map(Some).map_err(|_| Failure::invalid(format_args!("{name} is not UTF-8")))
}

/// The hits, whose size the first one tells.
///
/// # Safety
///
/// `hits` is NULL, or points to `length` structures as [`read`] wants them, one after the other.
pub(crate) unsafe fn read_hits(hits: *const pa_hit, length: usize) -> Result<Vec<pa_hit>, Failure> {
    if length == 0 {
        return Ok(Vec::new());
    }
    if length > super::PARTS_MAX {
        return Err(Failure::invalid(format_args!("the request has {length} hits, at most {} are taken", super::PARTS_MAX)));
    }
    // SAFETY: there is at least one.
    let size = unsafe { size_of_caller(hits) }?;
    let mut read_hits = Vec::with_capacity(length);
    for number in 0..length {
        // SAFETY: all have the size of the first, so this one begins there; what it says of itself is looked at first.
        read_hits.push(unsafe {
            let hit = hits.byte_add(number * size);
            if size_of_caller(hit)? != size {
                return Err(Failure::invalid("the hits of a request differ in struct_size"));
            }
            read(hit)?
        });
    }
    Ok(read_hits)
}

/// The extensions.
///
/// # Safety
///
/// `extensions` is NULL, or points to `length` extensions that live as long as `'a`.
pub(crate) unsafe fn read_extensions<'a>(extensions: *const pa_extension, length: usize) -> Result<&'a [pa_extension], Failure> {
    if length > super::PARTS_MAX {
        return Err(Failure::invalid(format_args!(
            "the request has {length} extensions, at most {} are taken",
            super::PARTS_MAX
        )));
    }
    // SAFETY: the caller's promise.
    unsafe { slice(extensions, length, "extensions") }
}
