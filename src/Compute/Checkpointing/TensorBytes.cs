using TorchSharp;
using static TorchSharp.torch;

namespace Megatron.Compute.Checkpointing;

/// <summary>
/// The bytes of contiguous CPU tensors. A span holds at most 2 GiB and an embedding may be larger, so access is by pointer and 64-bit
/// offset; the tensor must outlive the use.
/// </summary>
internal static unsafe class TensorBytes
{
    /// <summary>Bytes moved by one read or write call: measured best for pread into tensor memory.</summary>
    public const int SliceBytes = 16 << 20;

    /// <summary>Address of the first element; null for an empty tensor.</summary>
    /// <exception cref="InvalidOperationException">The tensor is not contiguous or not on the CPU.</exception>
    public static byte* Pointer(Tensor tensor)
    {
        if (tensor.device_type != DeviceType.CPU || !tensor.is_contiguous())
            throw new InvalidOperationException("File access needs a contiguous tensor on the CPU.");
        if (tensor.numel() == 0) return null;
        using var flat = tensor.view(-1);
        using var first = flat.narrow(0, 0, 1);
        fixed (byte* pointer = first.bytes) return pointer;
    }

    /// <summary>Calls <paramref name="visit"/> for consecutive pieces of at most 16 MiB.</summary>
    public static void ForEachSlice(Tensor tensor, SliceVisitor visit)
    {
        var pointer = Pointer(tensor);
        var size = tensor.numel() * tensor.element_size();
        for (var position = 0L; position < size; position += SliceBytes)
            visit(new Span<byte>(pointer + position, (int)Math.Min(SliceBytes, size - position)), position);
    }

    /// <summary>The safetensors name of a libtorch dtype.</summary>
    /// <exception cref="InvalidOperationException">The format has no such type.</exception>
    public static SafetensorsDType ToSafetensors(ScalarType dtype) => dtype switch
    {
        ScalarType.Bool => SafetensorsDType.BOOL,
        ScalarType.Byte => SafetensorsDType.U8,
        ScalarType.Int8 => SafetensorsDType.I8,
        ScalarType.Int16 => SafetensorsDType.I16,
        ScalarType.Int32 => SafetensorsDType.I32,
        ScalarType.Int64 => SafetensorsDType.I64,
        ScalarType.Float16 => SafetensorsDType.F16,
        ScalarType.BFloat16 => SafetensorsDType.BF16,
        ScalarType.Float32 => SafetensorsDType.F32,
        ScalarType.Float64 => SafetensorsDType.F64,
        ScalarType.ComplexFloat32 => SafetensorsDType.C64,
        _ => throw new InvalidOperationException($"A tensor of dtype {dtype} cannot be written to a safetensors file."),
    };

    /// <summary>The libtorch dtype of a safetensors type; null when the binding has none.</summary>
    public static ScalarType? ToScalarType(SafetensorsDType dtype) => dtype switch
    {
        SafetensorsDType.BOOL => ScalarType.Bool,
        SafetensorsDType.U8 => ScalarType.Byte,
        SafetensorsDType.I8 => ScalarType.Int8,
        SafetensorsDType.I16 => ScalarType.Int16,
        SafetensorsDType.I32 => ScalarType.Int32,
        SafetensorsDType.I64 => ScalarType.Int64,
        SafetensorsDType.F16 => ScalarType.Float16,
        SafetensorsDType.BF16 => ScalarType.BFloat16,
        SafetensorsDType.F32 => ScalarType.Float32,
        SafetensorsDType.F64 => ScalarType.Float64,
        SafetensorsDType.C64 => ScalarType.ComplexFloat32,
        _ => null,
    };

    /// <summary>A piece of a tensor's memory and its byte offset in the tensor.</summary>
    public delegate void SliceVisitor(Span<byte> slice, long offsetBytes);
}
