//! Few requests for many registers: neighbours of one table are read together.

use super::pdu::Table;

/// Registers or bits that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub table: Table,
    pub address: u16,
    pub count: u16,
}

impl Span {
    pub fn end(self) -> u32 {
        u32::from(self.address) + u32::from(self.count)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merging {
    pub enabled: bool,
    /// Registers or bits nobody asked for that may be read between two that are asked for.
    pub gap_max: u16,
    /// Most registers in one request, for devices that do less than the standard's 125.
    pub registers_max: u16,
    /// Most coils or discrete inputs in one request.
    pub bits_max: u16,
    /// The first request for coils begins at coil 0, for devices that refuse another beginning.
    pub coils_from_zero: bool,
}

impl Default for Merging {
    fn default() -> Merging {
        Merging { enabled: true, gap_max: 0, registers_max: 125, bits_max: 2000, coils_from_zero: false }
    }
}

impl Merging {
    pub fn count_max(self, table: Table) -> u32 {
        let most = if table.is_bits() { self.bits_max } else { self.registers_max }.min(table.read_max());
        u32::from(most)
    }
}

/// A request and which of the given spans it serves.
#[derive(Debug, PartialEq, Eq)]
pub struct Read {
    pub span: Span,
    pub serves: Vec<usize>,
}

/// The fewest requests that the rules allow, in the order of addresses. `wanted` are spans with their numbers.
pub fn merge(mut wanted: Vec<(usize, Span)>, merging: Merging) -> Vec<Read> {
    wanted.sort_by_key(|(number, span)| (span.table, span.address, *number));
    let mut reads: Vec<Read> = Vec::new();
    for (number, span) in wanted {
        if merging.enabled
            && let Some(last) = reads.last_mut()
            && last.span.table == span.table
            && u32::from(span.address) <= last.span.end() + u32::from(merging.gap_max)
        {
            let count = span.end().max(last.span.end()) - u32::from(last.span.address);
            if count <= merging.count_max(span.table) {
                last.span.count = count as u16;
                last.serves.push(number);
                continue;
            }
        }
        let mut span = span;
        if merging.coils_from_zero
            && span.table == Table::Coils
            && span.end() <= merging.count_max(span.table)
            && reads.iter().all(|read| read.span.table != Table::Coils)
        {
            (span.address, span.count) = (0, span.end() as u16);
        }
        reads.push(Read { span, serves: vec![number] });
    }
    reads
}
