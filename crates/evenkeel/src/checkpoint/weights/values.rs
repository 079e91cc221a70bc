//! What a pickle machine works on: values of 8 bytes that are copied freely, and the tables they point into.
//!
//! Nothing owns anything, so that a value that is used a million times costs a million times 8 bytes, and one that is
//! nested a million times is dropped without recursion.

use super::error::{Fault, damaged};

/// A value. The numbers are places in the tables of [`Values`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// Something that no tensor is made of: None, a float, bytes, a set.
    Other,
    /// A list, which no tensor is made of either; what is put into it is forgotten.
    List,
    /// A truth.
    Bool(bool),
    /// A whole number.
    Int(u32),
    /// A text.
    Text(u32),
    /// A tuple.
    Tuple(u32),
    /// A dictionary, ordered or not.
    Dict(u32),
    /// A class or function of the allow-list.
    Global(super::torch::Global),
    /// The numbers behind tensors.
    Storage(u32),
    /// A tensor.
    Tensor(u32),
}

/// The tables behind values.
#[derive(Default)]
pub struct Values<'a> {
    ints: Vec<i64>,
    texts: Vec<&'a str>,
    /// Members of all tuples, one tuple after another.
    members: Vec<Value>,
    /// Where the members of each tuple begin and end.
    tuples: Vec<(u32, u32)>,
    dicts: u32,
    /// What was put into dictionaries, in the order in which it was.
    puts: Vec<(u32, Value, Value)>,
}

impl<'a> Values<'a> {
    /// A new whole number.
    pub fn int(&mut self, value: i64) -> Value {
        self.ints.push(value);
        Value::Int(last(&self.ints))
    }

    /// A new text.
    pub fn text(&mut self, value: &'a str) -> Value {
        self.texts.push(value);
        Value::Text(last(&self.texts))
    }

    /// A new tuple.
    pub fn tuple(&mut self, members: impl IntoIterator<Item = Value>) -> Value {
        let begin = self.members.len() as u32;
        self.members.extend(members);
        self.tuples.push((begin, self.members.len() as u32));
        Value::Tuple(last(&self.tuples))
    }

    /// A new dictionary.
    pub fn dict(&mut self) -> Value {
        self.dicts += 1;
        Value::Dict(self.dicts - 1)
    }

    /// Puts a value into a dictionary.
    ///
    /// # Errors
    /// If it is none.
    pub fn put(&mut self, dict: Value, key: Value, value: Value) -> Result<(), Fault> {
        match dict {
            Value::Dict(dict) => self.puts.push((dict, key, value)),
            _ => return damaged("its pickle puts a value into what is no dictionary"),
        }
        Ok(())
    }

    /// What was put into a dictionary; nothing if it is none.
    pub fn entries(&self, dict: Value) -> impl Iterator<Item = (Value, Value)> {
        let puts = self.puts.iter().filter(move |(of, _, _)| Value::Dict(*of) == dict);
        puts.map(|(_, key, value)| (*key, *value))
    }

    /// The members of a tuple.
    pub fn members(&self, value: Value) -> Option<&[Value]> {
        let Value::Tuple(index) = value else { return None };
        let &(begin, end) = self.tuples.get(index as usize)?;
        self.members.get(begin as usize..end as usize)
    }

    /// The text that a value is.
    pub fn as_text(&self, value: Value) -> Option<&'a str> {
        let Value::Text(index) = value else { return None };
        self.texts.get(index as usize).copied()
    }

    /// The size, count or place that a value is.
    pub fn as_size(&self, value: Value) -> Option<usize> {
        let Value::Int(index) = value else { return None };
        usize::try_from(*self.ints.get(index as usize)?).ok()
    }

    /// The sizes in a tuple of them.
    pub fn as_sizes(&self, value: Value) -> Option<Vec<usize>> {
        let members = self.members(value).filter(|members| members.len() <= super::view::MAX_AXES)?;
        members.iter().map(|&member| self.as_size(member)).collect()
    }
}

/// The place of the newest; a pickle is short enough for 32 bits.
fn last<T>(table: &[T]) -> u32 {
    (table.len() - 1) as u32
}
