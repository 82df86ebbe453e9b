namespace Megatron.Compute.Tokenization;

/// <summary>A token that is looked for in the text before anything else happens to it.</summary>
/// <param name="Id">Token id.</param>
/// <param name="Content">Text of the token.</param>
/// <param name="IsSpecial">Whether decoding may leave it out.</param>
/// <param name="IsNormalized">Whether it is looked for in normalized text; otherwise in the text as given, first.</param>
/// <param name="StripsLeft">Whether it takes the white space in front of it.</param>
/// <param name="StripsRight">Whether it takes the white space after it.</param>
/// <param name="IsSingleWord">Whether it counts only where no word character touches it.</param>
internal sealed record AddedToken(
    int Id, string Content, bool IsSpecial, bool IsNormalized, bool StripsLeft, bool StripsRight, bool IsSingleWord);
