using Megatron.Compute.Configuration;

namespace Megatron.Compute.Data.Sources;

/// <summary>Why one row cannot be used.</summary>
/// <param name="Code">Stable code, DATA001 … DATA022.</param>
/// <param name="Reason">The kind of mistake in a few words, without values: rows are counted by it.</param>
/// <param name="Position">File, line and, where known, column or byte: <c>rows.jsonl:12:57</c>.</param>
/// <param name="Detail">What is wrong with which value and what to do; completes "position: ".</param>
internal sealed record RowProblem(string Code, string Reason, string Position, string Detail)
{
    /// <summary>True when the bytes could not be read as a row at all: a damaged file rather than an unsuitable row.</summary>
    public bool IsUnreadable => Code is "DATA001" or "DATA002" or "DATA006" or "DATA007";

    /// <summary>As an error that ends the run.</summary>
    public ConfigError ToError() => new(Code, $"{Position}: {Detail}");

    /// <inheritdoc/>
    public override string ToString() => $"{Code} {Position}: {Detail}";
}
