using System.Collections.Concurrent;
using System.Runtime.InteropServices;
using Megatron.Compute.Configuration;

namespace Megatron.Compute.Native;

/// <summary>
/// The numbers that TorchSharp hands to libtorch. Every <c>x.mul_(0.5)</c> makes a <c>Scalar</c> object with a native number behind it, to which
/// nothing refers any more during the call; its finalizer would free the number under libtorch's hands. Here equal numbers share one native
/// number that lives as long as the process (docs/adr/0007-interned-scalars.md).
/// </summary>
/// <remarks>
/// TorchSharp finds the functions behind its <c>Scalar</c> by name in the shim. <see cref="TakeOver"/> points those names to this class.
/// Safe from any thread.
/// </remarks>
internal static unsafe partial class NativeScalars
{
    /// <summary>Numbers kept for good, 48 bytes each; far more than a run's constants. Numbers beyond (learning rates, say) are freed late.</summary>
    private const int MaxInterned = 16 * 1024;

    /// <summary>A number that is not interned is freed when so many others have died after it: no call lasts that long.</summary>
    private const int NumRetired = 16 * 1024;

    private static readonly ConcurrentDictionary<(Type Type, long Bits), nint> interned = new();
    private static readonly ConcurrentDictionary<nint, byte> isInterned = new();
    private static readonly nint[] retired = new nint[NumRetired];
    private static uint numRetired;
    private static int numInterned;

    private static delegate* unmanaged<int, nint> makeInt32;
    private static delegate* unmanaged<long, nint> makeInt64;
    private static delegate* unmanaged<float, nint> makeFloat32;
    private static delegate* unmanaged<double, nint> makeFloat64;
    private static delegate* unmanaged<nint, void> free;

    /// <summary>Redirects the shim's scalar functions. To be called once, before TorchSharp makes its first call.</summary>
    /// <exception cref="ConfigException">NATIVE006: the shim lacks one of the functions.</exception>
    public static void TakeOver(nint shim, string shimPath)
    {
        makeInt32 = (delegate* unmanaged<int, nint>)Redirect("THSTorch_int32_to_scalar", (nint)(delegate* unmanaged<int, nint>)&Int32);
        makeInt64 = (delegate* unmanaged<long, nint>)Redirect("THSTorch_int64_to_scalar", (nint)(delegate* unmanaged<long, nint>)&Int64);
        makeFloat32 = (delegate* unmanaged<float, nint>)Redirect("THSTorch_float32_to_scalar", (nint)(delegate* unmanaged<float, nint>)&Float32);
        makeFloat64 = (delegate* unmanaged<double, nint>)Redirect("THSTorch_float64_to_scalar", (nint)(delegate* unmanaged<double, nint>)&Float64);
        free = (delegate* unmanaged<nint, void>)Redirect("THSTorch_dispose_scalar", (nint)(delegate* unmanaged<nint, void>)&Dispose);

        nint Redirect(string name, nint replacement)
        {
            if (NativeLibrary.TryGetExport(shim, name, out var original) && ExportTable.TryRedirect(original, replacement)) return original;
            throw new ConfigException("NATIVE006", $"{shimPath} has no usable {name}; run dotnet restore --force, or publish the program again.");
        }
    }

    [UnmanagedCallersOnly]
    private static nint Int32(int value) =>
        interned.TryGetValue((typeof(int), value), out var known) ? known : Intern((typeof(int), value), makeInt32(value));

    [UnmanagedCallersOnly]
    private static nint Int64(long value) =>
        interned.TryGetValue((typeof(long), value), out var known) ? known : Intern((typeof(long), value), makeInt64(value));

    [UnmanagedCallersOnly]
    private static nint Float32(float value)
    {
        var key = (typeof(float), (long)BitConverter.SingleToInt32Bits(value));
        return interned.TryGetValue(key, out var known) ? known : Intern(key, makeFloat32(value));
    }

    [UnmanagedCallersOnly]
    private static nint Float64(double value)
    {
        var key = (typeof(double), BitConverter.DoubleToInt64Bits(value));
        return interned.TryGetValue(key, out var known) ? known : Intern(key, makeFloat64(value));
    }

    /// <summary>Keeps <paramref name="made"/> for good while there is room. Of two threads with the same new number one keeps its own until it dies.</summary>
    private static nint Intern((Type, long) key, nint made)
    {
        if (Volatile.Read(ref numInterned) >= MaxInterned) return made;
        isInterned[made] = 0; // before others can see it
        if (interned.TryAdd(key, made)) Interlocked.Increment(ref numInterned);
        else isInterned.TryRemove(made, out _);
        return made;
    }

    [UnmanagedCallersOnly]
    private static void Dispose(nint scalar)
    {
        if (isInterned.ContainsKey(scalar)) return;
        var slot = Interlocked.Increment(ref numRetired) % NumRetired;
        if (Interlocked.Exchange(ref retired[slot], scalar) is var old and not 0) free(old);
    }
}
