//! Plain strings: printable ASCII without escapes.

pub fn is_printable(byte: u8) -> bool {
    (0x20..0x7f).contains(&byte)
}

/// How many bytes there are before the first that ends a plain string: a quote, a backslash, or
/// what is not printable ASCII. Eight at a time; a borrow or carry reaches only bytes behind it.
#[inline]
pub fn plain_length(bytes: &[u8]) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = 0x80 * ONES;
    let equals = |word: u64, byte: u8| {
        let difference = word ^ (ONES * u64::from(byte));
        difference.wrapping_sub(ONES) & !difference
    };
    let mut chunks = bytes.chunks_exact(8);
    let mut length = 0;
    for chunk in &mut chunks {
        let word = u64::from_le_bytes(chunk.try_into().expect("eight bytes"));
        let is_control = word.wrapping_sub(0x20 * ONES) & !word;
        let is_above = word | word.wrapping_add(ONES);
        let ends = (is_control | is_above | equals(word, b'"') | equals(word, b'\\')) & HIGHS;
        if ends != 0 {
            return length + ends.trailing_zeros() as usize / 8;
        }
        length += 8;
    }
    let is_plain = |byte: &&u8| is_printable(**byte) && !matches!(byte, b'"' | b'\\');
    length + chunks.remainder().iter().take_while(is_plain).count()
}
