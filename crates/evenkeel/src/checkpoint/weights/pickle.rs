//! A pickle machine that can do nothing but describe tensors.
//!
//! A pickle is a program for a small stack machine, and Python's runs whatever the program names. This one knows the
//! instructions that Python writes from protocol 2 on, and of classes and functions only those of
//! [`torch::Global`](super::torch::Global); all else is refused by name. Each instruction takes at least one byte and
//! makes a bounded number of bounded things, so that work and memory are linear in the length of the program.

use super::error::{Fault, damaged};
use super::torch::{Pickled, Torch};
use super::values::{Value, Values};

/// The longest pickle that is read: far more than the description of any model, and places in it fit 32 bits.
const LONGEST: usize = 1 << 28;

/// The tensors that a pickle of torch.save describes.
///
/// # Errors
/// If it does not end well, uses what a description of tensors does not need, or describes no tensors.
pub fn run(program: &[u8]) -> Result<Pickled<'_>, Fault> {
    if program.len() > LONGEST {
        return Err(Fault::Unsupported(format!("its pickle of {} bytes is too long", program.len())));
    }
    let mut machine = Machine {
        program,
        rest: program,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: Vec::new(),
        values: Values::default(),
        torch: Torch::default(),
    };
    let result = machine.run()?;
    machine.torch.result(&machine.values, result)
}

struct Machine<'a> {
    program: &'a [u8],
    rest: &'a [u8],
    stack: Vec<Value>,
    /// Heights of the stack at the marks that are open.
    marks: Vec<u32>,
    memo: Vec<Option<Value>>,
    values: Values<'a>,
    torch: Torch<'a>,
}

impl<'a> Machine<'a> {
    /// Runs to the STOP instruction and returns what it leaves.
    fn run(&mut self) -> Result<Value, Fault> {
        loop {
            let [code] = self.take()?;
            match code {
                b'.' => return self.pop(),
                0x80 => {
                    let [protocol] = self.take()?;
                    if !(2..=5).contains(&protocol) {
                        return Err(Fault::Unsupported(format!("its pickle has protocol {protocol}")));
                    }
                }
                // FRAME: the length of what follows, which serves reading in parts.
                0x95 => _ = self.take::<8>()?,
                b'(' => self.marks.push(self.stack.len() as u32),
                b'0' => _ = self.pop()?,
                b'1' => {
                    let height = self.unmark()?;
                    self.stack.truncate(height);
                }
                b'2' => self.stack.push(self.top()?),
                b'N' => self.stack.push(Value::Other),
                0x88 => self.stack.push(Value::Bool(true)),
                0x89 => self.stack.push(Value::Bool(false)),
                b'K' | b'M' | b'J' | 0x8a | 0x8b => self.int(code)?,
                b'G' => {
                    self.take::<8>()?;
                    self.stack.push(Value::Other);
                }
                b'X' | 0x8c | 0x8d | b'T' | b'U' => self.text(code)?,
                b'B' | b'C' | 0x8e | 0x96 => {
                    self.bytes(code)?;
                    self.stack.push(Value::Other);
                }
                b')' => self.collect(self.stack.len())?,
                b't' => {
                    let height = self.unmark()?;
                    self.collect(height)?;
                }
                0x85..=0x87 => {
                    let members = usize::from(code - 0x84);
                    let height = self.height_without(members)?;
                    self.collect(height)?;
                }
                b']' => self.stack.push(Value::List),
                0x8f => self.stack.push(Value::Other),
                b'l' => self.forget(Value::List)?,
                0x91 => self.forget(Value::Other)?,
                // APPEND, APPENDS, ADDITEMS: what is in lists and sets is not looked at.
                b'a' => _ = self.pop()?,
                b'e' | 0x90 => {
                    let height = self.unmark()?;
                    self.stack.truncate(height);
                    self.top()?;
                }
                b'}' => {
                    let dict = self.values.dict();
                    self.stack.push(dict);
                }
                b'd' => {
                    let height = self.unmark()?;
                    let dict = self.values.dict();
                    self.put_all(dict, height)?;
                    self.stack.push(dict);
                }
                b's' => {
                    let height = self.height_without(2)?;
                    let dict = self.beneath(height)?;
                    self.put_all(dict, height)?;
                }
                b'u' => {
                    let height = self.unmark()?;
                    let dict = self.beneath(height)?;
                    self.put_all(dict, height)?;
                }
                b'h' | b'j' => {
                    let place = self.place(code == b'h')?;
                    match self.memo.get(place).copied().flatten() {
                        Some(value) => self.stack.push(value),
                        None => return damaged("its pickle recalls what it has not stored"),
                    }
                }
                b'q' | b'r' => {
                    let place = self.place(code == b'q')?;
                    self.store(place)?;
                }
                0x94 => self.store(self.memo.len())?,
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.global(module, name)?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    match (self.values.as_text(module), self.values.as_text(name)) {
                        (Some(module), Some(name)) => self.global(module, name)?,
                        _ => return damaged("its pickle names a class by what is no text"),
                    }
                }
                b'Q' => {
                    let described = self.pop()?;
                    let storage = self.torch.storage(&self.values, described)?;
                    self.stack.push(storage);
                }
                b'R' => {
                    let (arguments, function) = (self.pop()?, self.pop()?);
                    let made = self.torch.call(&mut self.values, function, arguments)?;
                    self.stack.push(made);
                }
                // BUILD: attributes of an object, such as the versions of layers beside the tensors of a model.
                b'b' => {
                    self.pop()?;
                    if !matches!(self.top()?, Value::Dict(_) | Value::Tensor(_)) {
                        return damaged("its pickle gives attributes to what can have none");
                    }
                }
                other => {
                    return Err(Fault::Unsupported(format!(
                        "its pickle has the instruction {other:#04x}, which a file of tensors never needs"
                    )));
                }
            }
        }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        match self.rest.split_first_chunk() {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(*taken)
            }
            None => self.cut(),
        }
    }

    fn cut<T>(&self) -> Result<T, Fault> {
        damaged(format!("its pickle of {} bytes ends in the middle of an instruction", self.program.len()))
    }

    fn line(&mut self) -> Result<&'a str, Fault> {
        let Some(len) = self.rest.iter().position(|&byte| byte == b'\n') else { return self.cut() };
        let (line, rest) = self.rest.split_at(len);
        self.rest = rest.get(1..).unwrap_or_default();
        utf8(line)
    }

    /// Bytes behind their length, which has 1, 4 or 8 bytes.
    fn bytes(&mut self, code: u8) -> Result<&'a [u8], Fault> {
        let len = match code {
            0x8c | b'U' | b'C' => u64::from(u8::from_le_bytes(self.take()?)),
            b'X' | b'T' | b'B' => u64::from(u32::from_le_bytes(self.take()?)),
            _ => u64::from_le_bytes(self.take()?),
        };
        match usize::try_from(len).ok().and_then(|len| self.rest.split_at_checked(len)) {
            Some((bytes, rest)) => {
                self.rest = rest;
                Ok(bytes)
            }
            None => damaged(format!("its pickle announces {len} bytes and has {}", self.rest.len())),
        }
    }

    fn text(&mut self, code: u8) -> Result<(), Fault> {
        let text = utf8(self.bytes(code)?)?;
        let value = self.values.text(text);
        self.stack.push(value);
        Ok(())
    }

    fn int(&mut self, code: u8) -> Result<(), Fault> {
        let number = match code {
            b'K' => i64::from(u8::from_le_bytes(self.take()?)),
            b'M' => i64::from(u16::from_le_bytes(self.take()?)),
            b'J' => i64::from(i32::from_le_bytes(self.take()?)),
            // LONG1 and LONG4 write a number in as many bytes as it needs.
            _ => signed(self.bytes(if code == 0x8a { b'C' } else { b'B' })?)?,
        };
        let value = self.values.int(number);
        self.stack.push(value);
        Ok(())
    }

    fn place(&mut self, short: bool) -> Result<usize, Fault> {
        Ok(match short {
            true => usize::from(u8::from_le_bytes(self.take()?)),
            false => u32::from_le_bytes(self.take()?) as usize,
        })
    }

    /// Stores the top. Python numbers what it stores from 0 on, so that a place beyond the program's length is a lie.
    fn store(&mut self, place: usize) -> Result<(), Fault> {
        let top = self.top()?;
        if place >= self.program.len() {
            return damaged(format!("its pickle stores a value at place {place}"));
        }
        if self.memo.len() <= place {
            self.memo.resize(place + 1, None);
        }
        if let Some(slot) = self.memo.get_mut(place) {
            *slot = Some(top);
        }
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str) -> Result<(), Fault> {
        let global = super::torch::Global::find(module, name)?;
        self.stack.push(Value::Global(global));
        Ok(())
    }

    /// The height below which the open mark forbids to reach.
    fn floor(&self) -> usize {
        self.marks.last().map_or(0, |&mark| mark as usize)
    }

    fn height_without(&self, values: usize) -> Result<usize, Fault> {
        match self.stack.len().checked_sub(values).filter(|&height| height >= self.floor()) {
            Some(height) => Ok(height),
            None => damaged("its pickle takes more from its stack than is there"),
        }
    }

    fn pop(&mut self) -> Result<Value, Fault> {
        let value = self.top()?;
        self.stack.pop();
        Ok(value)
    }

    fn top(&self) -> Result<Value, Fault> {
        self.beneath(self.stack.len())
    }

    /// The value right below a height.
    fn beneath(&self, height: usize) -> Result<Value, Fault> {
        match self.stack.get(self.floor()..height) {
            Some([.., value]) => Ok(*value),
            _ => damaged("its pickle takes more from its stack than is there"),
        }
    }

    /// Closes the open mark.
    fn unmark(&mut self) -> Result<usize, Fault> {
        match self.marks.pop() {
            Some(height) => Ok(height as usize),
            None => damaged("its pickle closes a group that it has not begun"),
        }
    }

    /// Makes a tuple of what lies above a height.
    fn collect(&mut self, height: usize) -> Result<(), Fault> {
        let tuple = self.values.tuple(self.stack.drain(height..));
        self.stack.push(tuple);
        Ok(())
    }

    /// Puts `instead` in the place of the group on top.
    fn forget(&mut self, instead: Value) -> Result<(), Fault> {
        let height = self.unmark()?;
        self.stack.truncate(height);
        self.stack.push(instead);
        Ok(())
    }

    /// Puts the keys and values above a height into a dictionary.
    fn put_all(&mut self, dict: Value, height: usize) -> Result<(), Fault> {
        let (pairs, odd) = self.stack.get(height..).unwrap_or_default().as_chunks();
        if !odd.is_empty() {
            return damaged("its pickle puts a key without a value into a dictionary");
        }
        for &[key, value] in pairs {
            self.values.put(dict, key, value)?;
        }
        self.stack.truncate(height);
        Ok(())
    }
}

fn utf8(bytes: &[u8]) -> Result<&str, Fault> {
    std::str::from_utf8(bytes).map_err(|_| Fault::Damaged("a text in its pickle is not UTF-8".into()))
}

/// A number of at most 8 bytes in two's complement.
fn signed(bytes: &[u8]) -> Result<i64, Fault> {
    if bytes.len() > 8 {
        return Err(Fault::Unsupported(format!("its pickle has a number of {} bytes", bytes.len())));
    }
    let fill = if bytes.last().is_some_and(|&top| top >= 0x80) { 0xff } else { 0 };
    let mut wide = [fill; 8];
    wide.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    Ok(i64::from_le_bytes(wide))
}
