//! Room for results: numbers that are whatever their memory held, until a kernel writes them.
//!
//! Zeros that are written over cost as much as a small kernel, and one thread writes them while the others wait.

use bytemuck::Pod;

/// `n` numbers for a kernel that writes all of them; before that each may be any number. Debug builds, where nothing
/// depends on speed, make them NaN or as large as they get, so that a test sees one that was forgotten.
pub fn unwritten<T: Pod>(n: usize) -> Vec<T> {
    if cfg!(debug_assertions) || !cfg!(any(target_arch = "x86_64", target_arch = "aarch64")) {
        let mut room = vec![T::zeroed(); n];
        bytemuck::cast_slice_mut::<T, u8>(&mut room).fill(0xff);
        return room;
    }
    let mut room = Vec::<T>::with_capacity(n);
    // SAFETY: the assembly may write to memory, so what it is handed counts as written, with the bytes that are there;
    // any bytes make a `Pod`, and there is room for `n` of them.
    unsafe {
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        std::arch::asm!("/* {0} */", in(reg) room.as_mut_ptr(), options(nostack, preserves_flags));
        room.set_len(n);
    }
    room
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room() {
        for n in [0, 1, 1000, 1 << 20] {
            let mut room = unwritten::<f32>(n);
            assert_eq!(room.len(), n);
            room.iter_mut().enumerate().for_each(|(i, x)| *x = i as f32);
            assert!(room.iter().enumerate().all(|(i, x)| *x == i as f32));
        }
    }
}
