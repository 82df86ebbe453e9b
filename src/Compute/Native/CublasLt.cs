// cuBLASLt (cublasLt.h of CUDA 12 and 13): products of matrices whose algorithm the caller may choose.

using System.Runtime.InteropServices;

namespace Megatron.Compute.Native;

/// <summary>How cuBLASLt forms a product: 64 opaque bytes, which stay valid in another process with the same version of the library (cublasLtMatmulAlgo_t).</summary>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct ProductAlgorithm
{
    public const int SizeBytes = 64;

    private fixed byte bytes[SizeBytes];

    /// <summary>For a file.</summary>
    public readonly string ToHex()
    {
        fixed (byte* first = bytes) return Convert.ToHexStringLower(new ReadOnlySpan<byte>(first, SizeBytes));
    }

    /// <summary>False when <paramref name="hex"/> is not 64 bytes.</summary>
    public static bool TryParse(ReadOnlySpan<char> hex, out ProductAlgorithm algorithm)
    {
        algorithm = default;
        if (hex.Length != 2 * SizeBytes) return false;
        fixed (byte* first = algorithm.bytes)
            return Convert.FromHexString(hex, new Span<byte>(first, SizeBytes), out _, out _) == System.Buffers.OperationStatus.Done;
    }
}

/// <summary>One answer of the library's heuristic (cublasLtMatmulHeuristicResult_t).</summary>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct ProductCandidate
{
    public ProductAlgorithm Algorithm;
    public nuint WorkspaceBytes;
    public int Status;
    public float Waves;
    private fixed int reserved[4];
}

/// <summary>The functions and constants of cuBLASLt that this program uses.</summary>
internal sealed unsafe class CublasLt
{
    public const int TypeFp32 = 0, TypeFp16 = 2, TypeBf16 = 14, TypeE4M3 = 28, TypeE5M2 = 29;              // cudaDataType
    public const int ComputeFp32 = 68;                                                                     // cublasComputeType_t
    public const int TransposeA = 3, TransposeB = 4, Epilogue = 7, BiasPointer = 8, ScaleA = 17, ScaleB = 18, FastAccumulation = 25; // …MatmulDescAttributes_t
    public const int EpilogueBias = 4;                                                                     // cublasLtEpilogue_t
    public const int MaxWorkspaceBytes = 1, MinAlignmentA = 5, MinAlignmentB = 6, MinAlignmentC = 7, MinAlignmentD = 8;              // …PreferenceAttributes_t

    /// <summary>cublasLtCreate(out handle).</summary>
    public readonly delegate* unmanaged<nint*, int> Create;

    /// <summary>size_t cublasLtGetVersion().</summary>
    public readonly delegate* unmanaged<nuint> GetVersion;

    /// <summary>cublasLtMatmulDescCreate(out description, computeType, scaleType), …Destroy, …SetAttribute(description, attribute, value, bytes).</summary>
    public readonly delegate* unmanaged<nint*, int, int, int> DescriptionCreate;
    public readonly delegate* unmanaged<nint, int> DescriptionDestroy;
    public readonly delegate* unmanaged<nint, int, void*, nuint, int> DescriptionSet;

    /// <summary>cublasLtMatrixLayoutCreate(out layout, type, rows, columns, leadingDimension), …Destroy.</summary>
    public readonly delegate* unmanaged<nint*, int, ulong, ulong, long, int> LayoutCreate;
    public readonly delegate* unmanaged<nint, int> LayoutDestroy;

    /// <summary>cublasLtMatmulPreferenceCreate(out preference), …Destroy, …SetAttribute(preference, attribute, value, bytes).</summary>
    public readonly delegate* unmanaged<nint*, int> PreferenceCreate;
    public readonly delegate* unmanaged<nint, int> PreferenceDestroy;
    public readonly delegate* unmanaged<nint, int, void*, nuint, int> PreferenceSet;

    /// <summary>cublasLtMatmulAlgoGetHeuristic(handle, description, A, B, C, D, preference, numRequested, results, out numResults).</summary>
    public readonly delegate* unmanaged<nint, nint, nint, nint, nint, nint, nint, int, ProductCandidate*, int*, int> GetHeuristic;

    /// <summary>cublasLtMatmulAlgoCheck(handle, description, A, B, C, D, algorithm, out result).</summary>
    public readonly delegate* unmanaged<nint, nint, nint, nint, nint, nint, ProductAlgorithm*, ProductCandidate*, int> AlgorithmCheck;

    /// <summary>cublasLtMatmul(handle, description, alpha, A, layoutA, B, layoutB, beta, C, layoutC, D, layoutD, algorithm, workspace, workspaceBytes, stream).</summary>
    public readonly delegate* unmanaged<nint, nint, float*, nint, nint, nint, nint, float*, nint, nint, nint, nint, ProductAlgorithm*, nint, nuint, nint, int> Matmul;

    /// <param name="library">Handle of libcublasLt.so.</param>
    /// <param name="missing">Receives the names of functions that are not there.</param>
    public CublasLt(nint library, List<string> missing)
    {
        Create = (delegate* unmanaged<nint*, int>)Export("Create");
        GetVersion = (delegate* unmanaged<nuint>)Export("GetVersion");
        DescriptionCreate = (delegate* unmanaged<nint*, int, int, int>)Export("MatmulDescCreate");
        DescriptionDestroy = (delegate* unmanaged<nint, int>)Export("MatmulDescDestroy");
        DescriptionSet = (delegate* unmanaged<nint, int, void*, nuint, int>)Export("MatmulDescSetAttribute");
        LayoutCreate = (delegate* unmanaged<nint*, int, ulong, ulong, long, int>)Export("MatrixLayoutCreate");
        LayoutDestroy = (delegate* unmanaged<nint, int>)Export("MatrixLayoutDestroy");
        PreferenceCreate = (delegate* unmanaged<nint*, int>)Export("MatmulPreferenceCreate");
        PreferenceDestroy = (delegate* unmanaged<nint, int>)Export("MatmulPreferenceDestroy");
        PreferenceSet = (delegate* unmanaged<nint, int, void*, nuint, int>)Export("MatmulPreferenceSetAttribute");
        GetHeuristic = (delegate* unmanaged<nint, nint, nint, nint, nint, nint, nint, int, ProductCandidate*, int*, int>)Export("MatmulAlgoGetHeuristic");
        AlgorithmCheck = (delegate* unmanaged<nint, nint, nint, nint, nint, nint, ProductAlgorithm*, ProductCandidate*, int>)Export("MatmulAlgoCheck");
        Matmul = (delegate* unmanaged<nint, nint, float*, nint, nint, nint, nint, float*, nint, nint, nint, nint, ProductAlgorithm*, nint, nuint, nint, int>)Export("Matmul");

        nint Export(string name) => CudaAbi.Export(library, "cublasLt" + name, missing);
    }

    /// <exception cref="InvalidOperationException"><paramref name="status"/> is not 0.</exception>
    public static void Check(int status, string function)
    {
        if (status != 0) throw new InvalidOperationException($"{function} failed with status {status}.");
    }
}
