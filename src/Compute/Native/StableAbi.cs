// libtorch's stable C ABI (torch/csrc/inductor/aoti_torch/c/shim.h and torch/csrc/stable/c/shim.h of PyTorch 2.10): plain C functions that return
// 0 or an error code and write their results through pointers. An AtenTensorHandle is an at::Tensor*, the same pointer as TorchSharp's Tensor.Handle.

using System.Runtime.InteropServices;
using Megatron.Compute.Configuration;

namespace Megatron.Compute.Native;

/// <summary>
/// The functions of libtorch's C ABI that this program calls, resolved once when libtorch is loaded, so that a missing one is reported by
/// name at start and not in the middle of a step.
/// </summary>
internal sealed unsafe class StableAbi
{
    /// <summary>int torch_call_dispatcher(op, overload, stack, version): arguments in, results out, both in <c>stack</c>.</summary>
    public readonly delegate* unmanaged<byte*, byte*, ulong*, ulong, int> CallDispatcher;

    /// <summary>int aoti_torch_new_tensor_handle(tensor, out handle): another owner of the same tensor.</summary>
    public readonly delegate* unmanaged<nint, nint*, int> NewTensorHandle;

    /// <summary>int aoti_torch_new_uninitialized_tensor(out handle): an undefined tensor, for absent arguments of typed shims.</summary>
    public readonly delegate* unmanaged<nint*, int> NewUninitializedTensor;

    /// <summary>int aoti_torch_delete_tensor_object(handle). Never on a handle that a TorchSharp tensor wraps.</summary>
    public readonly delegate* unmanaged<nint, int> DeleteTensorObject;

    /// <summary>int aoti_torch_get_data_ptr(tensor, out pointer): address of the first element, on the tensor's device.</summary>
    public readonly delegate* unmanaged<nint, nint*, int> GetDataPtr;

    /// <summary>int aoti_torch_is_defined(tensor, out bool).</summary>
    public readonly delegate* unmanaged<nint, byte*, int> IsDefined;

    /// <summary>C++ <c>operator new(size)</c>: the dispatcher frees optional arguments with the matching delete.</summary>
    public readonly delegate* unmanaged<nuint, void*> OperatorNew;

    /// <summary>C++ <c>operator delete(pointer)</c>.</summary>
    public readonly delegate* unmanaged<void*, void> OperatorDelete;

    /// <summary>The version of the loaded libtorch in the form that <c>torch_call_dispatcher</c> takes.</summary>
    public ulong AbiVersion { get; }

    private StableAbi(nint cpu, nint standardLibrary, string folder, Version version)
    {
        List<string> missing = [];
        CallDispatcher = (delegate* unmanaged<byte*, byte*, ulong*, ulong, int>)Export(cpu, "torch_call_dispatcher", missing);
        NewTensorHandle = (delegate* unmanaged<nint, nint*, int>)Export(cpu, "aoti_torch_new_tensor_handle", missing);
        NewUninitializedTensor = (delegate* unmanaged<nint*, int>)Export(cpu, "aoti_torch_new_uninitialized_tensor", missing);
        DeleteTensorObject = (delegate* unmanaged<nint, int>)Export(cpu, "aoti_torch_delete_tensor_object", missing);
        GetDataPtr = (delegate* unmanaged<nint, nint*, int>)Export(cpu, "aoti_torch_get_data_ptr", missing);
        IsDefined = (delegate* unmanaged<nint, byte*, int>)Export(cpu, "aoti_torch_is_defined", missing);
        OperatorNew = (delegate* unmanaged<nuint, void*>)Export(standardLibrary, "_Znwm", missing);
        OperatorDelete = (delegate* unmanaged<void*, void>)Export(standardLibrary, "_ZdlPv", missing);
        if (missing.Count > 0)
        {
            throw new ConfigException("NATIVE005", $"libtorch {version} in {folder} lacks {string.Join(", ", missing)}; "
                + $"use one of the tested versions {string.Join(" and ", LibTorch.TestedVersions)}.");
        }
        AbiVersion = Pack(version);
    }

    /// <summary>Resolves every function.</summary>
    /// <exception cref="ConfigException">NATIVE005: names each function that is missing.</exception>
    public static StableAbi Resolve(nint cpu, nint standardLibrary, string folder, Version version) => new(cpu, standardLibrary, folder, version);

    /// <summary>The version that a loaded libtorch_cpu reports.</summary>
    /// <exception cref="ConfigException">NATIVE004: too old to say its version.</exception>
    public static Version ReadVersion(nint cpu, string folder)
    {
        if (!NativeLibrary.TryGetExport(cpu, "aoti_torch_abi_version", out var function))
        {
            throw new ConfigException("NATIVE004", $"libtorch in {folder} is too old to tell its version; "
                + $"use one of the tested versions {string.Join(" and ", LibTorch.TestedVersions)}.");
        }
        var packed = ((delegate* unmanaged<ulong>)function)();
        return new Version((int)(packed >> 56), (int)(packed >> 48 & 0xff), (int)(packed >> 40 & 0xff));
    }

    /// <summary>Turns an error code into an exception. libtorch itself prints the reason to standard error.</summary>
    /// <exception cref="InvalidOperationException"><paramref name="code"/> is not 0.</exception>
    public static void Check(int code, string function)
    {
        if (code != 0) throw new InvalidOperationException($"libtorch reported an error in {function} (code {code}); its own message is on standard error.");
    }

    private static ulong Pack(Version version) => (ulong)version.Major << 56 | (ulong)version.Minor << 48 | (ulong)version.Build << 40;

    private static nint Export(nint library, string name, List<string> missing)
    {
        if (NativeLibrary.TryGetExport(library, name, out var address)) return address;
        missing.Add(name);
        return 0;
    }
}
