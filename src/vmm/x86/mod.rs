//! What is x86 about a VM: address map, boot protocol, registers, CPUID, ACPI.
//!
//! Owns tables and register values as plain data; leaves handing them to KVM to the recipe.
//! Invariant: nothing here owns a descriptor, so everything here is tested without KVM.

pub mod acpi;
pub mod apic;
pub mod boot;
mod caches;
pub mod cpuid;
pub mod layout;
mod madt;
mod mptable;
pub mod paging;
pub mod regs;
mod srat;
#[cfg(test)]
mod tests_cpuid;
