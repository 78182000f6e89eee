"""An NVML with the values of an H100 SXM under load, whose answers a test can change."""

from types import SimpleNamespace
from typing import Any

NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND, DRIVER_NOT_LOADED, FUNCTION_NOT_FOUND, TIMEOUT = 3, 4, 6, 9, 13, 10
MESSAGES = {
    2: "Invalid Argument",
    NOT_SUPPORTED: "Not Supported",
    NO_PERMISSION: "Insufficient Permissions",
    NOT_FOUND: "Not Found",
    DRIVER_NOT_LOADED: "Driver Not Loaded",
    TIMEOUT: "Timeout",
    FUNCTION_NOT_FOUND: "Function Not Found",
}


class NVMLError(Exception):
    """As pynvml's: a code in `value`, its words as text."""

    def __init__(self, value: int) -> None:
        super().__init__(MESSAGES[value])
        self.value = value


class StandInNvml:
    """`answers[function]`: a value for every card, a function of the card's number, or an error code as NVMLError."""

    NVMLError = NVMLError
    NVML_CLOCK_SM = 1
    NVML_CLOCK_MEM = 2
    NVML_TEMPERATURE_GPU = 0
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 1
    NVML_VOLATILE_ECC = 0
    NVML_NVLINK_MAX_LINKS = 18

    def __init__(self, cards: int = 1, **changes: Any) -> None:
        self.calls: dict[str, int] = {}
        self.is_open = False
        self.cards = cards
        self.answers: dict[str, Any] = {
            "nvmlSystemGetDriverVersion": "580.95.05",
            "nvmlDeviceGetName": "NVIDIA H100 80GB HBM3",
            "nvmlDeviceGetUUID": lambda card: f"GPU-0000-{card}",
            "nvmlDeviceGetClockInfo": lambda card, kind: {1: 1755, 2: 2619}[kind],
            "nvmlDeviceGetMaxClockInfo": lambda card, kind: {1: 1980, 2: 2619}[kind],
            "nvmlDeviceGetPowerUsage": 650_000,
            "nvmlDeviceGetTotalEnergyConsumption": NVMLError(NOT_SUPPORTED),
            "nvmlDeviceGetTemperature": 61,
            "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=97, memory=40),
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=85_520_809_984, used=72_000_000_000),
            "nvmlDeviceGetCurrentClocksEventReasons": 0x4,
            "nvmlDeviceGetCurrentClocksThrottleReasons": 0x4,
            "nvmlDeviceGetComputeRunningProcesses": [],
            "nvmlDeviceGetEccMode": [1, 1],
            "nvmlDeviceGetTotalEccErrors": 0,
            "nvmlDeviceGetMigMode": [0, 0],
            "nvmlDeviceGetEnforcedPowerLimit": 700_000,
            "nvmlDeviceGetCudaComputeCapability": (9, 0),
            "nvmlDeviceGetNumGpuCores": 16_896,
            "nvmlDeviceGetMemoryBusWidth": 5120,
            "nvmlDeviceGetMaxPcieLinkGeneration": 5,
            "nvmlDeviceGetMaxPcieLinkWidth": 16,
            "nvmlDeviceGetNvLinkState": 1,
        } | changes

    def nvmlInit(self) -> None:
        self._answer("nvmlInit", ())
        self.is_open = True

    def nvmlShutdown(self) -> None:
        self.is_open = False

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index >= self.cards:
            raise NVMLError(2)
        return index

    def __getattr__(self, function: str) -> Any:
        if function not in self.answers:
            raise AttributeError(function)
        return lambda *arguments: self._answer(function, arguments)

    def _answer(self, function: str, arguments: tuple[Any, ...]) -> Any:
        assert self.is_open or function == "nvmlInit"
        self.calls[function] = self.calls.get(function, 0) + 1
        found = self.answers.get(function)
        if callable(found):
            found = found(*arguments)
        if isinstance(found, NVMLError):
            raise found
        return found
