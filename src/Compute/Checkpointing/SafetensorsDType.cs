namespace Megatron.Compute.Checkpointing;

/// <summary>Element types of the safetensors format, by the format's own names. All are parsed; libtorch holds only some of them.</summary>
public enum SafetensorsDType
{
    BOOL, F4, F6_E2M3, F6_E3M2, U8, I8, F8_E5M2, F8_E4M3, F8_E8M0, F8_E4M3FNUZ, F8_E5M2FNUZ, I16, U16, F16, BF16, I32, U32, F32, C64, F64, I64, U64,
}

/// <summary>Facts about <see cref="SafetensorsDType"/>.</summary>
public static class SafetensorsDTypes
{
    private static readonly Dictionary<string, SafetensorsDType> byName =
        Enum.GetValues<SafetensorsDType>().ToDictionary(dtype => dtype.ToString(), StringComparer.Ordinal);

    /// <summary>Looks a name of the format up; case matters.</summary>
    public static bool TryParse(string name, out SafetensorsDType dtype) => byName.TryGetValue(name, out dtype);

    /// <summary>Bits of one element: 4 to 64.</summary>
    public static int Bits(this SafetensorsDType dtype) => dtype switch
    {
        SafetensorsDType.F4 => 4,
        SafetensorsDType.F6_E2M3 or SafetensorsDType.F6_E3M2 => 6,
        SafetensorsDType.BOOL or SafetensorsDType.U8 or SafetensorsDType.I8 or SafetensorsDType.F8_E5M2 or SafetensorsDType.F8_E4M3
            or SafetensorsDType.F8_E8M0 or SafetensorsDType.F8_E4M3FNUZ or SafetensorsDType.F8_E5M2FNUZ => 8,
        SafetensorsDType.I16 or SafetensorsDType.U16 or SafetensorsDType.F16 or SafetensorsDType.BF16 => 16,
        SafetensorsDType.I32 or SafetensorsDType.U32 or SafetensorsDType.F32 => 32,
        _ => 64,
    };

    /// <summary>Bytes of one element.</summary>
    /// <exception cref="InvalidOperationException">The type is narrower than a byte.</exception>
    public static int SizeBytes(this SafetensorsDType dtype) =>
        dtype.Bits() >= 8 ? dtype.Bits() / 8 : throw new InvalidOperationException($"{dtype} elements are not whole bytes.");
}
