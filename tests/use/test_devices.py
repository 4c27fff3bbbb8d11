"The real `pynvml` over a stand-in for the driver's library."
import ctypes
import pytest
from helpers.stand_in_nvml import Nvml
from hybrid_nb.use.devices import load_nvml, nvml_devices
from hybrid_nb.use.monitor import list_alerts, Monitor


def test_the_stand_in_has_the_functions_of_pynvml():
    pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    names = [n for n in vars(Nvml) if n.startswith(("nvml", "NVML"))]
    assert len(names) > 10 and not [n for n in names if not hasattr(pynvml, n)]

class Driver:
    "What stands for libnvidia-ml below the real `pynvml`: two devices, the second of which tells nothing but its name."
    SUCCESS, NOT_SUPPORTED, TOO_SMALL = 0, 3, 7
    def __getattr__(self, name):
        known = dict(
            nvmlDeviceGetCount_v2=self.count, nvmlDeviceGetHandleByIndex_v2=self.handle, nvmlDeviceGetName=self.name,
            nvmlDeviceGetUtilizationRates=self.rates, nvmlDeviceGetMemoryInfo=self.memory,
            nvmlDeviceGetTemperature=self.heat, nvmlDeviceGetPowerUsage=self.power,
            nvmlDeviceGetComputeRunningProcesses_v3=self.processes)
        plain = dict(nvmlInitWithFlags=self.SUCCESS, nvmlShutdown=self.SUCCESS, nvmlErrorString=b"Not Supported")
        if name not in known | plain: raise AttributeError(name) # an old driver, without nvmlDeviceGetTemperatureV
        def call(*args):
            if name in plain: return plain[name]
            second = args and isinstance(args[0], ctypes._Pointer) and self.is_second(args[0])
            if second and name != "nvmlDeviceGetName": return self.NOT_SUPPORTED
            return known[name](*args) or self.SUCCESS
        return call

    def is_second(self, handle): return ctypes.addressof(handle.contents) == ctypes.addressof(self.devices[1])
    def __init__(self, nvml): self.devices = [nvml.struct_c_nvmlDevice_t() for _ in range(2)]
    def count(self, n): n._obj.value = 2
    def handle(self, index, h): h._obj.contents = self.devices[index.value]
    def name(self, h, text, size): text.value = b"NVIDIA H200"
    def rates(self, h, r): r._obj.gpu = 97
    def memory(self, h, m): m._obj.total, m._obj.used = 2**37, 2**36
    def heat(self, h, sensor, t): t._obj.value = 64 if sensor.value == 0 else 0
    def power(self, h, p): p._obj.value = 612_345
    def processes(self, h, n, out):
        if out is None: n._obj.value = 1; return self.TOO_SMALL
        n._obj.value, out[0].pid = 1, 4242

def test_the_real_pynvml_over_a_stand_in_for_the_driver(tmp_path, monkeypatch):
    pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    monkeypatch.setattr(pynvml, "nvmlLib", Driver(pynvml))
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    first, second = nvml_devices(load_nvml())
    assert first == dict(id="GPU 0", name="NVIDIA H200", utilisation=97, memory_used=2**36, memory_total=2**37,
                         temperature=64, power=612.345, processes=1)
    assert second == dict.fromkeys(first) | dict(id="GPU 1", name="NVIDIA H200")
    (tmp_path/"runs").mkdir()
    look = Monitor(tmp_path/"runs", hot=60, nvml=load_nvml()).look()
    assert list_alerts(look)[0] == "GPU 0 hot: 64 °C"
