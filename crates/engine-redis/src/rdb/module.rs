//! Values of modules (rdb.c, `rdbLoadCheckModuleValue`): a row of annotated parts that can be passed over.
//!
//! Invariant: no module's meaning is known here; only where its value ends.

use backup_core::Result;

use super::blob;
use super::input::Input;

/// The characters of a module type's name (module.c, `ModuleTypeNameCharSet`).
const NAME_CHARACTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

const END: u64 = 0;
const SIGNED: u64 = 1;
const UNSIGNED: u64 = 2;
const FLOAT: u64 = 3;
const DOUBLE: u64 = 4;
const STRING: u64 = 5;

/// The name of a module's type: nine characters of six bits above ten bits of version (module.c, `moduleTypeNameByID`).
pub(super) fn name(id: u64) -> String {
    (1..=9).map(|position| char::from(NAME_CHARACTERS[(id >> (64 - 6 * position) & 0x3f) as usize])).collect()
}

/// Passes over the parts of a value, through its end mark.
pub(super) fn skip_parts(input: &mut Input<'_>) -> Result<()> {
    loop {
        match input.number()? {
            END => return Ok(()),
            SIGNED | UNSIGNED => drop(input.number()?),
            FLOAT => input.skip(4)?,
            DOUBLE => input.skip(8)?,
            STRING => blob::skip(input)?,
            other => return Err(input.damaged(format!("a module's value has an unknown part {other}"))),
        }
    }
}

/// Passes over what a module stored beside the keys (opcode 247); returns the module type's name.
pub(super) fn skip_aux(input: &mut Input<'_>) -> Result<String> {
    let id = input.number()?;
    if input.number()? != UNSIGNED {
        return Err(input.damaged("a module's data does not say when it belongs"));
    }
    input.number()?;
    skip_parts(input)?;
    Ok(name(id))
}

/// Passes over what modules attached to a key (keymeta.c, opcode 243 of Redis 8.6 and later).
pub(super) fn skip_key_metadata(input: &mut Input<'_>) -> Result<()> {
    let classes = input.number()?;
    for _ in 0..classes {
        input.array::<4>()?;
        skip_parts(input)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_in_the_upper_bits() {
        let letters = b"ReJSON-RL";
        let id = letters.iter().fold(0_u64, |id, letter| {
            let index = NAME_CHARACTERS.iter().position(|character| character == letter).unwrap();
            id << 6 | index as u64
        });
        assert_eq!(name(id << 10 | 3), "ReJSON-RL");
    }
}
