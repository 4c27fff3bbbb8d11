"A stand-in for `pynvml` (nvidia-ml-py 13): the functions that the monitor calls, with their units and errors."
from types import SimpleNamespace as Struct

class Nvml:
    "A machine with made-up NVIDIA devices; a field that a device lacks raises as the driver does."
    NVML_TEMPERATURE_GPU = 0
    class NVMLError(Exception): pass

    def __init__(self, *devices): self.devices = list(devices)

    def ask(self, handle, field):
        value = self.devices[handle].get(field)
        if value is None: raise self.NVMLError("Not Supported")
        return value

    def nvmlInit(self): pass
    def nvmlShutdown(self): pass
    def nvmlDeviceGetCount(self): return len(self.devices)
    def nvmlDeviceGetHandleByIndex(self, index): return index
    def nvmlDeviceGetName(self, handle): return self.ask(handle, "name")
    def nvmlDeviceGetUtilizationRates(self, handle): return Struct(gpu=self.ask(handle, "percent"), memory=0)
    def nvmlDeviceGetMemoryInfo(self, handle):
        used, total = self.ask(handle, "bytes")
        return Struct(used=used, free=total - used, total=total)
    def nvmlDeviceGetTemperatureV(self, handle, sensor): return self.ask(handle, "celsius")
    def nvmlDeviceGetTemperature(self, handle, sensor): return self.ask(handle, "celsius_of_old_drivers")
    def nvmlDeviceGetPowerUsage(self, handle): return self.ask(handle, "milliwatts")
    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        return [Struct(pid=pid, usedGpuMemory=None) for pid in self.ask(handle, "pids")]

def h200(**fields):
    "A device under load; fields can be changed, or taken away with None."
    return dict(name="NVIDIA H200", percent=97, bytes=(61 * 2**30, 140 * 2**30), celsius=64, milliwatts=612_000,
                pids=[4242]) | fields
