from typing import Any

def registrations() -> dict[str, Any]: ...
def lattice_workspace_elements(
    frames: int, cells: int, topology: int, with_posteriors: bool, element_bytes: int
) -> int: ...
def packed_workspace_elements(
    cells: int, topology: int, with_posteriors: bool, element_bytes: int
) -> tuple[int, int]: ...
def banded_workspace_elements(
    frames: int,
    cells: int,
    num_labels: int,
    topology: int,
    with_posteriors: bool,
    element_bytes: int,
) -> int: ...
def best_path_workspace_elements(frames: int, cells: int, element_bytes: int) -> int: ...
