//! Programs of guests, in the kernel's own read-only data: assembly between two labels, `name` and `name_end`.

/// Says which labels there are.
macro_rules! programs {
    ($($name:ident $end:ident),*) => {
        unsafe extern "C" {
            $(static $name: u32; static $end: u32;)*
        }
    };
}

/// The instructions between two labels.
macro_rules! program {
    ($name:ident, $end:ident) => {{
        let (start, end) = (&raw const $name, &raw const $end);
        // SAFETY: both are labels of one program in read-only data, a multiple of 8 bytes apart.
        unsafe { core::slice::from_raw_parts(start, (end as usize - start as usize) / 4) }
    }};
}

pub(super) use {program, programs};
