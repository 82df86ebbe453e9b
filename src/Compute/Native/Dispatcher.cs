using System.Text;
using static TorchSharp.torch;

namespace Megatron.Compute.Native;

/// <summary>
/// One argument of an operator as libtorch's dispatcher takes it: the type must be the one in the operator's schema, with optional
/// parameters (<c>float?</c>, <c>Tensor?</c>) made by the <c>Optional</c> methods.
/// </summary>
public readonly struct StableValue
{
    internal enum Kind { Bits, Tensor, Absent, OptionalBits, OptionalTensor }

    internal Kind Form { get; }
    internal ulong Bits { get; }
    internal Tensor? Tensor { get; }

    private StableValue(Kind form, ulong bits, Tensor? tensor) => (Form, Bits, Tensor) = (form, bits, tensor);

    /// <summary>Schema type <c>Tensor</c>.</summary>
    public static implicit operator StableValue(Tensor tensor) => new(Kind.Tensor, 0, tensor);

    /// <summary>Schema type <c>int</c>.</summary>
    public static implicit operator StableValue(long value) => new(Kind.Bits, (ulong)value, null);

    /// <summary>Schema type <c>bool</c>.</summary>
    public static implicit operator StableValue(bool value) => new(Kind.Bits, value ? 1UL : 0UL, null);

    /// <summary>Schema type <c>float</c>.</summary>
    public static implicit operator StableValue(double value) => new(Kind.Bits, BitConverter.DoubleToUInt64Bits(value), null);

    /// <summary>Schema type <c>Tensor?</c>.</summary>
    public static StableValue Optional(Tensor? tensor) => tensor is null ? new(Kind.Absent, 0, null) : new(Kind.OptionalTensor, 0, tensor);

    /// <summary>Schema type <c>float?</c>.</summary>
    public static StableValue Optional(double? value) => value is { } number ? new(Kind.OptionalBits, BitConverter.DoubleToUInt64Bits(number), null) : new(Kind.Absent, 0, null);

    /// <summary>Schema type <c>int?</c>.</summary>
    public static StableValue Optional(long? value) => value is { } number ? new(Kind.OptionalBits, (ulong)number, null) : new(Kind.Absent, 0, null);
}

/// <summary>
/// Calls any operator of libtorch by name: what TorchSharp does not wrap. Not for operators with a <c>Scalar</c> argument, which the C ABI
/// does not carry. One call costs a few microseconds more than a TorchSharp method.
/// </summary>
public static unsafe class Dispatcher
{
    private const int MaxValues = 32;

    /// <summary>
    /// Runs <paramref name="op"/> on its arguments in schema order, all of them, defaults included.
    /// </summary>
    /// <param name="op">Such as <c>aten::_grouped_mm</c>.</param>
    /// <param name="overload">Overload name, "" for the default one.</param>
    /// <param name="numResults">Number of results of the schema, all tensors.</param>
    /// <param name="arguments">Not consumed: each tensor gets a second owner for the call.</param>
    /// <returns>New tensors, registered in the current dispose scope.</returns>
    /// <exception cref="InvalidOperationException">libtorch refused the call; it prints the reason to standard error.</exception>
    public static Tensor[] Call(string op, string overload, int numResults, params ReadOnlySpan<StableValue> arguments)
    {
        ArgumentOutOfRangeException.ThrowIfGreaterThan(arguments.Length, MaxValues);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(numResults, MaxValues);
        var abi = LibTorch.Abi;
        var stack = stackalloc ulong[MaxValues];
        for (var index = 0; index < arguments.Length; index++) stack[index] = Push(abi, arguments[index]);
        fixed (byte* name = Encoding.ASCII.GetBytes(op + '\0'), overloadName = Encoding.ASCII.GetBytes(overload + '\0'))
        {
            // The operator owns the arguments from here, also when it fails. (An unknown name, a programming error, keeps them.)
            StableAbi.Check(abi.CallDispatcher(name, overloadName, stack, abi.AbiVersion), op);
        }

        var results = new Tensor[numResults];
        for (var index = 0; index < numResults; index++) results[index] = Tensor.UnsafeCreateTensor((nint)stack[index]);
        foreach (var argument in arguments) GC.KeepAlive(argument.Tensor);
        return results;
    }

    /// <summary>Address of the first element of <paramref name="tensor"/> on its device; valid while the tensor lives.</summary>
    public static nint DataPointer(Tensor tensor)
    {
        nint pointer;
        StableAbi.Check(LibTorch.Abi.GetDataPtr(tensor.Handle, &pointer), "aoti_torch_get_data_ptr");
        return pointer;
    }

    private static ulong Push(StableAbi abi, StableValue value) => value.Form switch
    {
        StableValue.Kind.Tensor => NewOwner(abi, value.Tensor!), // the form says that it is there
        StableValue.Kind.OptionalTensor => OnHeap(abi, NewOwner(abi, value.Tensor!)), // likewise
        StableValue.Kind.OptionalBits => OnHeap(abi, value.Bits),
        _ => value.Bits,
    };

    private static ulong NewOwner(StableAbi abi, Tensor tensor)
    {
        nint handle;
        StableAbi.Check(abi.NewTensorHandle(tensor.Handle, &handle), "aoti_torch_new_tensor_handle");
        return (ulong)handle;
    }

    /// <summary>A present optional is a pointer to its value, made with operator new because the dispatcher deletes it.</summary>
    private static ulong OnHeap(StableAbi abi, ulong value)
    {
        var cell = (ulong*)abi.OperatorNew(sizeof(ulong));
        *cell = value;
        return (ulong)cell;
    }
}
