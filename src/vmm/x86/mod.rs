//! What is x86 about a VM: address map, boot protocol, registers, CPUID, ACPI.
//!
//! Owns tables and register values as plain data; leaves handing them to KVM to the recipe.
//! Invariant: nothing here owns a descriptor, so everything here is tested without KVM.

pub mod acpi;
pub mod boot;
pub mod cpuid;
pub mod layout;
pub mod paging;
pub mod regs;
