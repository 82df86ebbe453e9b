namespace Megatron.Compute.Data.Rows;

/// <summary>Leaves the parsing of one row; <see cref="RowParser"/> turns it into a <see cref="Sources.RowProblem"/>. Never seen outside.</summary>
internal sealed class RowException(string code, string reason, string detail) : Exception(detail)
{
    /// <summary>DATA001 … DATA006.</summary>
    public string Code { get; } = code;

    /// <summary>The kind of mistake without values.</summary>
    public string Reason { get; } = reason;
}
